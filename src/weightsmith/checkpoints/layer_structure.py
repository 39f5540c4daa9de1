"""What the layers of a stack are made of, and whether a configuration says which layer is made of what.

A network builds layers by what its configuration says of them. Where layers of one checkpoint differ in their tensors
and nothing in the configuration tells them apart, the network goes by the position: the last layer of GPT-NeoX Japanese
has a bias. Such layers cannot be moved to another position.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from weightsmith.errors import CompatibilityError
from weightsmith.naming import blocks_in
from weightsmith.tensors import LazyTensor

Signature = frozenset[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class LayerStructure:
    """The stack with the prefix `stack`: what each of its layers stores, and how long all numbered lists are."""

    stack: str
    layers: tuple[Signature, ...]
    counts: Mapping[str, int]


def structure_of(tensors: Mapping[str, LazyTensor], stack: str, count: int) -> LayerStructure:
    """The structure of the stack with the prefix `stack`, which has `count` layers.

    What lies behind that number, such as blocks that only predict further tokens, is no layer.
    """
    found: list[set[tuple[str, tuple[int, ...]]]] = [set() for _ in range(count)]
    counts: dict[str, int] = {}
    start = f"{stack}."
    for name, tensor in tensors.items():
        for prefix, place, _ in blocks_in(name):
            counts[prefix] = max(place + 1, counts.get(prefix, 0))
            break
        number, _, rest = name.removeprefix(start).partition(".")
        if name.startswith(start) and number.isdigit() and int(number) < len(found):
            found[int(number)].add((rest, tensor.shape))
    return LayerStructure(stack, tuple(map(frozenset, found)), counts | {stack: count})


def require_movable(
    structure: LayerStructure, kinds: Sequence[Hashable], sources: Sequence[int]
) -> None:
    """Raise CompatibilityError where layers of one kind differ in their tensors and would change their positions.

    `kinds[i]` is all that the configuration says of layer i, `sources[j]` the layer that becomes layer j.
    """
    layers = structure.layers
    found: dict[Hashable, Counter[Signature]] = defaultdict(Counter)
    for kind, own in zip(kinds, layers, strict=True):
        found[kind][own] += 1
    if all(len(signatures) == 1 for signatures in found.values()):
        return
    common = _majority(Counter(layers))
    usual = {
        kind: _majority(signatures) or (common if common in signatures else None)
        for kind, signatures in found.items()
    }
    for position, source in enumerate(sources):
        for expected in _expected(layers, kinds, usual, position, source, len(sources)):
            if layers[source] != expected:
                raise CompatibilityError(
                    f"Layer {source} of {structure.stack!r} would become layer {position} of {len(sources)}, where "
                    f"the network has other tensors (such as {min(layers[source] ^ expected)[0]!r}), and no key of "
                    "the configuration says which layers have them: choose slices that keep layers that differ at "
                    "their positions, counted from the end that they are near."
                )


def _majority(signatures: Counter[Signature]) -> Signature | None:
    """What more than half of the layers are made of, None where that is nothing."""
    signature, number = signatures.most_common(1)[0]
    return signature if 2 * number > signatures.total() else None


def _expected(
    layers: Sequence[Signature],
    kinds: Sequence[Hashable],
    usual: Mapping[Hashable, Signature | None],
    position: int,
    source: int,
    count: int,
) -> set[Signature]:
    """What the network may have at a position among `count` layers, if that alone decides.

    Where most layers of a kind are alike, the others are counted from the end of the stack that they are near; where
    nothing is usual, from both.
    """
    from_start, from_end = position, position + len(layers) - count
    if None in usual.values():
        return {layers[i] for i in (from_start, from_end) if 0 <= i < len(layers)}
    odd = {i for i, own in enumerate(layers) if own != usual[kinds[i]]}
    anchored = [i for i in (from_start,) if i in odd and 2 * i < len(layers)]
    anchored += [i for i in (from_end,) if i in odd and 2 * i >= len(layers)]
    if anchored:
        return {layers[anchored[0]]}
    common = usual[kinds[source]]
    return set() if common is None else {common}
