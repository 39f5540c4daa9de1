"""How rough the boundaries between stacked layers are, as far as weights tell: a report on frankenmerges."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.checkpoints import Checkpoint
from weightsmith.engine import Plan, measure_each
from weightsmith.inspection.checkpoint_difference import measure_tensors
from weightsmith.inspection.measures import Measures, together
from weightsmith.recipes import (
    LayerBoundary,
    LayerOrigin,
    layer_boundaries,
    layer_origins,
    repeated_layers,
)
from weightsmith.tensors import Kind, LazyTensor, Place, chunks_of

_WRITES = frozenset({Kind.ATTENTION_O, Kind.MLP_DOWN, Kind.EXPERT_DOWN})
_PARTS = ("norms", "reads", "writes")


@dataclass(frozen=True, slots=True)
class LayerChange:
    """How a layer differs from the one that used to be in its place.

    `norms`, `reads` and `writes` are relative differences |x - y| / |y| of weights of normalisation, of matrices that
    read the residual stream, and of those that write into it; `write_ratio` is |x| / |y| of the latter. None where a
    layer has no such tensors in common with the other.
    """

    compared_with: LayerOrigin
    norms: float | None
    reads: float | None
    writes: float | None
    write_ratio: float | None

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "instead_of": self.compared_with.to_mapping(),
            "norms": self.norms,
            "reads": self.reads,
            "writes": self.writes,
            "write_ratio": self.write_ratio,
        }


@dataclass(frozen=True, slots=True)
class BoundaryMeasures:
    """One boundary with three views of it.

    `successor` compares the layer behind the boundary with the one that used to follow the layer before it, and
    `predecessor` the layer before with the one that used to precede the layer behind; None where there was none.
    `written` is the root of the squared norms of all that writes into the residual stream before the layer behind the
    boundary, over the same for that layer in its source: how much larger the stream may be that it meets (None for a
    first layer).
    """

    boundary: LayerBoundary
    successor: LayerChange | None
    predecessor: LayerChange | None
    written: float | None

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "stack": self.boundary.stack,
            "after": self.boundary.after,
            "left": self.boundary.left.to_mapping(),
            "right": self.boundary.right.to_mapping(),
            "successor": None if self.successor is None else self.successor.to_mapping(),
            "predecessor": None if self.predecessor is None else self.predecessor.to_mapping(),
            "written": self.written,
        }


@dataclass(frozen=True, slots=True)
class BoundaryReport:
    """All stacks of a model: their layers' origins, repeated layers, and boundaries."""

    origins: Mapping[str, tuple[LayerOrigin, ...]]
    repeated: Mapping[str, tuple[LayerOrigin, ...]]
    boundaries: tuple[BoundaryMeasures, ...]
    parameters: int

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "parameters": self.parameters,
            "stacks": [
                {
                    "stack": stack,
                    "layers": [origin.to_mapping() for origin in layers],
                    "repeated": [origin.to_mapping() for origin in self.repeated[stack]],
                }
                for stack, layers in self.origins.items()
            ],
            "seams": [found.to_mapping() for found in self.boundaries],
        }


def boundaries_of_plan(plan: Plan, *, threads: int | None = None) -> BoundaryReport:
    """The boundaries of what a recipe will make, measured on the weights of its sources; merged layers by their
    first.
    """
    outputs = plan.resolved.outputs
    origins = layer_origins(outputs, plan.resolved.checkpoints)
    parameters = sum(math.prod(output.shape) for output in outputs)
    return _report(
        plan.resolved.checkpoints, origins, layer_boundaries(origins), parameters, threads
    )


def boundaries_of_checkpoint(
    checkpoint: Checkpoint, *, threads: int | None = None
) -> BoundaryReport:
    """The boundaries of a checkpoint whose making is unknown: where a run of copies of earlier layers begins.

    Layers are copies if all their tensors have the same bytes, so all of them are read.
    """
    stacks = _stacks(checkpoint)
    digests = {
        stack: [_digest(layers[i]) for i in sorted(layers)] for stack, layers in stacks.items()
    }
    origins: dict[str, tuple[LayerOrigin, ...]] = {}
    boundaries: list[LayerBoundary] = []
    for stack, own in digests.items():
        first = [own.index(digest) for digest in own]
        made_of = tuple(LayerOrigin(checkpoint.source, stack, i) for i in first)
        origins[stack] = made_of
        for after, right in enumerate(first[1:]):
            if right <= after and right != first[after] + 1:
                follower = LayerOrigin(checkpoint.source, stack, _follower(first, after))
                previous = made_of[after + 1].neighbour(-1)
                boundaries.append(
                    LayerBoundary(
                        stack, after, made_of[after], made_of[after + 1], follower, previous
                    )
                )
    parameters = sum(math.prod(tensor.shape) for tensor in checkpoint.tensors.values())
    return _report({checkpoint.source: checkpoint}, origins, boundaries, parameters, threads)


def _follower(first: Sequence[int], after: int) -> int:
    """The layer that follows another copy of layer `after`, and is not the one that follows this; -1 without one."""
    return next(
        (
            first[i + 1]
            for i in range(len(first) - 1)
            if i != after and first[i] == first[after] and first[i + 1] != first[after + 1]
        ),
        -1,
    )


def _report(
    checkpoints: Mapping[str, Checkpoint],
    origins: Mapping[str, tuple[LayerOrigin, ...]],
    boundaries: Sequence[LayerBoundary],
    parameters: int,
    threads: int | None,
) -> BoundaryReport:
    sources = _Sources(checkpoints)
    wanted = [pair for boundary in boundaries for pair in _pairs(boundary, sources)]
    writers = [
        o for boundary in boundaries for o in _written_before(boundary, origins[boundary.stack])
    ]
    measured = _Measured(sources, threads)
    measured.measure([*wanted, *((o, o) for o in writers if sources.has(o))])
    return BoundaryReport(
        origins=origins,
        repeated={stack: repeated_layers(layers) for stack, layers in origins.items()},
        boundaries=tuple(
            _boundary(boundary, origins[boundary.stack], sources, measured)
            for boundary in boundaries
        ),
        parameters=parameters,
    )


def _pairs(boundary: LayerBoundary, sources: _Sources) -> list[tuple[LayerOrigin, LayerOrigin]]:
    """(layer, the one that used to be in its place) on both sides of a boundary."""
    pairs = [(boundary.right, boundary.next), (boundary.left, boundary.previous)]
    return [pair for pair in pairs if sources.has(pair[1])]


def _written_before(boundary: LayerBoundary, layers: Sequence[LayerOrigin]) -> list[LayerOrigin]:
    return [*layers[: boundary.after + 1], *_earlier(boundary.right)]


def _earlier(origin: LayerOrigin) -> list[LayerOrigin]:
    return [LayerOrigin(origin.checkpoint, origin.stack, i) for i in range(origin.layer)]


def _boundary(
    boundary: LayerBoundary, layers: Sequence[LayerOrigin], sources: _Sources, measured: _Measured
) -> BoundaryMeasures:
    written = math.sqrt(math.fsum(measured.square(o) for o in layers[: boundary.after + 1]))
    used_to_be = math.sqrt(math.fsum(measured.square(o) for o in _earlier(boundary.right)))
    return BoundaryMeasures(
        boundary=boundary,
        successor=measured.change(boundary.right, boundary.next)
        if sources.has(boundary.next)
        else None,
        predecessor=(
            measured.change(boundary.left, boundary.previous)
            if sources.has(boundary.previous)
            else None
        ),
        written=written / used_to_be if used_to_be else None,
    )


class _Sources:
    """Layers of the checkpoints by origin."""

    def __init__(self, checkpoints: Mapping[str, Checkpoint]) -> None:
        self._checkpoints = checkpoints
        self._stacks: dict[str, dict[str, dict[int, dict[str, str]]]] = {}

    def has(self, origin: LayerOrigin) -> bool:
        return bool(self._layer(origin))

    def tensors(self, origin: LayerOrigin) -> dict[str, tuple[LazyTensor, Place]]:
        """Rest of the name -> tensor and role."""
        checkpoint = self._checkpoints[origin.checkpoint]
        return {
            rest: (checkpoint.tensors[name], checkpoint.places[name])
            for rest, name in self._layer(origin).items()
        }

    def _layer(self, origin: LayerOrigin) -> dict[str, str]:
        if origin.checkpoint not in self._stacks:
            found = _stacks(self._checkpoints[origin.checkpoint])
            names = {
                stack: {i: {rest: t.name for rest, t in own.items()} for i, own in layers.items()}
                for stack, layers in found.items()
            }
            self._stacks[origin.checkpoint] = names
        return self._stacks[origin.checkpoint].get(origin.stack, {}).get(origin.layer, {})


class _Measured:
    """Measures of pairs of layers, by the part that tensors have in a layer."""

    def __init__(self, sources: _Sources, threads: int | None) -> None:
        self._sources = sources
        self._threads = threads
        self._found: dict[Hashable, dict[str, list[Measures]]] = {}

    def measure(self, pairs: Iterable[tuple[LayerOrigin, LayerOrigin]]) -> None:
        """Stream the tensors of every pair once; of a layer with itself, only what writes into the stream."""
        places: list[list[Measures]] = []
        groups: list[list[LazyTensor]] = []
        for a, b in dict.fromkeys(pairs):
            parts = self._found.setdefault((a, b), defaultdict(list))
            others = self._sources.tensors(b)
            for rest, (tensor, role) in self._sources.tensors(a).items():
                other = others.get(rest)
                part = _part(role, tensor)
                if other is None or part is None or other[0].shape != tensor.shape:
                    continue
                if a != b or part == "writes":
                    places.append(parts[part])
                    groups.append([other[0], tensor])
        for own, found in zip(
            places, measure_each(groups, measure_tensors, self._threads), strict=True
        ):
            own.append(found)

    def change(self, layer: LayerOrigin, other: LayerOrigin) -> LayerChange:
        parts = self._found[layer, other]
        joined = {part: together(parts[part]) if parts.get(part) else None for part in _PARTS}
        relative = {p: None if m is None else m.relative_delta for p, m in joined.items()}
        writes = joined["writes"]
        ratio = math.sqrt(writes.bb / writes.aa) if writes is not None and writes.aa else None
        return LayerChange(other, relative["norms"], relative["reads"], relative["writes"], ratio)

    def square(self, origin: LayerOrigin) -> float:
        """Sum of squares of what writes into the stream in one layer."""
        parts = self._found.get((origin, origin), {})
        return math.fsum(m.aa for m in parts.get("writes", ()))


def _part(role: Place, tensor: LazyTensor) -> str | None:
    if not tensor.dtype.is_float:
        return None
    if role.kind is Kind.NORM:
        return "norms"
    if len(tensor.shape) < 2:
        return None
    return "writes" if role.kind in _WRITES else "reads"


def _stacks(checkpoint: Checkpoint) -> dict[str, dict[int, dict[str, LazyTensor]]]:
    """Prefix of each stack -> layer -> rest of the name -> tensor."""
    found: dict[str, dict[int, dict[str, LazyTensor]]] = defaultdict(dict)
    for name, tensor in checkpoint.tensors.items():
        role = checkpoint.places[name]
        if role.stack is not None and role.layer is not None:
            found[role.stack].setdefault(role.layer, {})[role.rest] = tensor
    return dict(found)


def _digest(layer: Mapping[str, LazyTensor]) -> str:
    """Equal for layers with the same bytes in all their tensors."""
    import hashlib

    state = hashlib.blake2b(digest_size=16)
    for rest, tensor in sorted(layer.items()):
        state.update(f"{rest} {tensor.dtype.value} {tensor.shape}".encode())
        for chunk in chunks_of(tensor):
            state.update(chunk)
    return state.hexdigest()
