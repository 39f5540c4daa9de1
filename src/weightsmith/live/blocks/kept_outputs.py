"""What the calls of a network's parts gave, by batch and call."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as trees

from weightsmith.live.blocks.activations import ActivationStore, as_key
from weightsmith.live.blocks.kept_tensors import KeptTensor

# Tells how a kept tensor is handed out: as it is, or as a leaf of a graph.
Hand = Callable[[Hashable, torch.Tensor], torch.Tensor]


class OutputDropped(BaseException):
    """An output was asked for that is kept no longer; no error of the network, so nothing on the way may catch it."""


@dataclass(frozen=True, slots=True, eq=False)
class _Form:
    """The tree of an output: tensors as their shapes, without memory, and everything else as it is."""

    leaves: tuple[Any, ...]
    tree: Any


class KeptOutputs:
    """Outputs with their tensors in a store; those that are dropped are remembered as shapes."""

    def __init__(self, store: ActivationStore) -> None:
        self._store = store
        self._forms: dict[tuple[int, int], _Form] = {}
        self._trained: set[Hashable] = set()

    def keep(self, batch: int, call: int, output: Any) -> None:
        """Keep the output of a call."""
        leaves, tree = trees.tree_flatten(output)
        for i, leaf in enumerate(leaves):
            if isinstance(leaf, torch.Tensor):
                self._store.put(("output", batch, call, i), leaf)
                if leaf.requires_grad:
                    self._trained.add(("output", batch, call, i))
        self._forms[batch, call] = _Form(tuple(_form(leaf) for leaf in leaves), tree)

    def has(self, batch: int, call: int) -> bool:
        """Whether all of an output is kept."""
        form = self._forms.get((batch, call))
        return form is not None and all(key in self._store for key in self._keys(batch, call))

    def drop(self, batch: int, call: int) -> None:
        """Forget the elements of an output."""
        for key in self._keys(batch, call):
            self._store.drop(key)

    def output(self, batch: int, call: int, hand: Hand) -> Any:
        """An output whose tensors are fetched when they are computed with."""
        form = self._forms[batch, call]
        leaves = [
            self._lazy(("output", batch, call, i), leaf, hand)
            if isinstance(leaf, torch.Tensor)
            else leaf
            for i, leaf in enumerate(form.leaves)
        ]
        return trees.tree_unflatten(leaves, form.tree)

    def tensors(self, batch: int, call: int, output: Any) -> Iterator[tuple[Hashable, Any]]:
        """The keys of an output's tensors, with those of `output`, which is that output computed again."""
        for i, leaf in enumerate(trees.tree_flatten(output)[0]):
            if isinstance(leaf, torch.Tensor):
                yield ("output", batch, call, i), leaf

    def as_leaf(self, key: Hashable, tensor: torch.Tensor) -> torch.Tensor:
        """A kept tensor that requires a gradient if it did when it was computed, as kernels are chosen by it."""
        return tensor.detach().requires_grad_() if key in self._trained else tensor

    def to_json(self, calls: int) -> dict[str, Any] | None:
        """The forms of the outputs of the first calls, each written once; None where one of them cannot be written."""
        written: dict[str, int] = {}
        places = []
        for (batch, call), form in self._forms.items():
            if call < calls:
                try:
                    text = json.dumps(_written(form))
                except (TypeError, ValueError, NotImplementedError):
                    return None
                places.append([batch, call, written.setdefault(text, len(written))])
        forms = [json.loads(text) for text in written]
        return {"forms": forms, "places": places, "trained": list(self._trained)}

    def restore(self, known: Mapping[str, Any]) -> None:
        """Know the outputs that `to_json` told of; their tensors are in the store."""
        forms = [_read_form(form) for form in known["forms"]]
        self._forms = {(batch, call): forms[i] for batch, call, i in known["places"]}
        self._trained = {as_key(key) for key in known["trained"]}

    def _lazy(self, key: Hashable, form: torch.Tensor, hand: Hand) -> KeptTensor:
        def fetch() -> torch.Tensor:
            if key not in self._store:
                raise OutputDropped
            return hand(key, self._store.get(key))

        return KeptTensor.of(form, fetch)

    def _keys(self, batch: int, call: int) -> list[Hashable]:
        leaves = self._forms[batch, call].leaves
        return [
            ("output", batch, call, i)
            for i, leaf in enumerate(leaves)
            if isinstance(leaf, torch.Tensor)
        ]


def _form(leaf: Any) -> Any:
    """A tensor of the same shape and device that has no memory of its own to speak of."""
    if not isinstance(leaf, torch.Tensor):
        return leaf
    with torch.no_grad():
        return KeptTensor.of(leaf.detach(), _nothing)


def _written(form: _Form) -> dict[str, Any]:
    """A form as JSON has it; raises what JSON and torch raise for leaves and trees that cannot be written."""
    leaves: list[Any] = []
    for leaf in form.leaves:
        if isinstance(leaf, torch.Tensor):
            dtype = str(leaf.dtype).removeprefix("torch.")
            leaves.append([list(leaf.shape), list(leaf.stride()), dtype, str(leaf.device)])
        elif leaf is None or type(leaf) in (bool, int, float, str):
            leaves.append(leaf)
        else:
            raise TypeError
    return {"leaves": leaves, "tree": trees.treespec_dumps(form.tree)}


def _read_form(known: Mapping[str, Any]) -> _Form:
    leaves = []
    for leaf in known["leaves"]:
        if isinstance(leaf, list):
            shape, strides, dtype, device = leaf
            leaf = KeptTensor.like(shape, strides, getattr(torch, dtype), device, _nothing)
        leaves.append(leaf)
    return _Form(tuple(leaves), trees.treespec_loads(known["tree"]))


def _nothing() -> torch.Tensor:
    raise OutputDropped


def as_kept(_: Hashable, tensor: torch.Tensor) -> torch.Tensor:
    """Hand a tensor out as it is."""
    return tensor
