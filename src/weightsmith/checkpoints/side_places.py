"""Places of tensors that lie in files beside a checkpoint's main set: each file is a network of its own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from weightsmith.checkpoints.anatomy import anatomy_of
from weightsmith.naming import beside, beside_name
from weightsmith.tensors import Kind, LazyTensor, Place

# The main set has the vocabulary that is meant by these, and they are not to be taken for it.
_OF_THE_MAIN_SET = {Kind.EMBEDDING: Kind.OTHER, Kind.HEAD: Kind.LINEAR}


def main_set(tensors: Mapping[str, LazyTensor]) -> Mapping[str, LazyTensor]:
    """The tensors that lie in no file beside the main set."""
    if not any("/" in name for name in tensors):
        return tensors
    return {name: tensor for name, tensor in tensors.items() if beside(name) is None}


def side_places(tensors: Mapping[str, LazyTensor]) -> dict[str, Place]:
    """The place of every tensor in a file beside the main set, as its own file tells.

    A table or head there counts as any other matrix, since it is none of the language model.
    """
    files: dict[str, dict[str, LazyTensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        found = beside(name)
        if found is not None:
            files[found[0]][found[1]] = tensor
    places = {}
    for file, own in files.items():
        for stored, place in anatomy_of(own, None).places.items():
            name = beside_name(file, stored)
            kind = _OF_THE_MAIN_SET.get(place.kind, place.kind)
            stack = None if place.stack is None else beside_name(file, place.stack)
            places[name] = replace(place, name=name, kind=kind, stack=stack)
    return places
