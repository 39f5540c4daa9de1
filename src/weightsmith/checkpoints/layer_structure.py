"""What the layers of a stack are made of, and whether a configuration says which layer is made of what.

A network builds layers by what its configuration says of them. Where layers of one checkpoint differ in their tensors
and nothing in the configuration tells them apart, the network goes by the position: the last layer of GPT-NeoX Japanese
has a bias. Such layers cannot be moved to another position.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from weightsmith.errors import CompatibilityError
from weightsmith.tensors import LazyTensor

Signature = frozenset[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class LayerStructure:
    """The stack with the prefix `stack`: what each of its layers stores, and how many layers all stacks have."""

    stack: str
    layers: tuple[Signature, ...]
    counts: Mapping[str, int]


def structure_of(
    tensors: Mapping[str, LazyTensor], counts: Mapping[str, int], stack: str
) -> LayerStructure:
    """The structure of the stack with the prefix `stack`; `counts` are the numbers of layers of all stacks.

    What lies behind that number, such as blocks that only predict further tokens, is no layer.
    """
    found: list[set[tuple[str, tuple[int, ...]]]] = [set() for _ in range(counts[stack])]
    start = f"{stack}."
    for name, tensor in tensors.items():
        number, _, rest = name.removeprefix(start).partition(".")
        if name.startswith(start) and number.isdigit() and int(number) < len(found):
            found[int(number)].add((rest, tensor.shape))
    return LayerStructure(stack, tuple(map(frozenset, found)), counts)


def require_movable(
    structure: LayerStructure, kinds: Sequence[Hashable], sources: Sequence[int]
) -> None:
    """Raise CompatibilityError where layers of one kind differ in their tensors and would change their positions.

    `kinds[i]` is all that the configuration says of layer i, `sources[j]` the layer that becomes layer j.
    """
    of_kind: dict[Hashable, Signature] = {}
    layers = structure.layers
    odd = [i for i, kind in enumerate(kinds) if of_kind.setdefault(kind, layers[i]) != layers[i]]
    if not odd:
        return
    added = len(sources) - len(layers)
    for position, source in enumerate(sources):
        expected = [i for i in (position, position - added) if 0 <= i < len(layers)]
        other = next((i for i in expected if layers[i] != layers[source]), None)
        if other is not None:
            raise CompatibilityError(
                f"Layer {source} of {structure.stack!r} would become layer {position}, where the network has other "
                f"tensors (such as {min(layers[source] ^ layers[other])[0]!r}), and no key of the configuration says "
                "which layers have them: choose slices that keep such layers at their positions, counted from both ends."
            )
