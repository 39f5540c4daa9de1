"""Gradients with respect to free numbers, from dL/dtheta of each merged tensor.

A tensor that is a sum of values with free numbers as coefficients takes inner products of dL/dtheta with those values,
which are streamed once, some at a time, by any backend. Others are pulled back with torch tile by tile: first the pass
that makes the output, then, in reverse, those that measured sums which depend on the numbers. What is neither (matrix
methods, extremes and numbers per column that depend on free numbers) is done with the tensors in memory whole.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from weightsmith.engine.outputs.storage import Target
from weightsmith.engine.planning.linearity import free_terms
from weightsmith.engine.planning.planned_tensors import PlannedTensor
from weightsmith.engine.running.scheduler import Rounds
from weightsmith.engine.running.tensor_job import TensorJob
from weightsmith.errors import GradientError, UsageError
from weightsmith.graph import (
    Node,
    PassSpec,
    Scalar,
    Scope,
    Threshold,
    Value,
    dot,
    has_row_nodes,
    is_row_reduction,
    source,
    used_sources,
    walk,
    work_dtype,
)
from weightsmith.tensors import DType, LazyTensor, MemorySink, MemoryTensor, read_bytes
from weightsmith.wording import shown

if TYPE_CHECKING:
    from weightsmith.graph import GradientTile, Pull, TilePass

# Sources that are read in one pass of inner products, and numbers that are held while a tile is pulled back.
_MOST_SOURCES, _HELD_NUMBERS = 4, 1 << 22
_LARGEST_TILE = 1 << 18


def gradient_rounds(job: TensorJob, loss: LazyTensor) -> Rounds:
    """sum <dL/dtheta, dtheta/dv> by the names of the free numbers v of a tensor's graph, `loss` being dL/dtheta.

    What the job needs of statistics of the model is known. Raises GradientError where these depend on free numbers.
    """
    output = job.outputs[0]
    assert isinstance(output, Value)
    below = Dependents(output)
    if not below.numbers:
        return {}
    below.refuse(job.name)
    if below.is_streamed:
        yield from job.resolve()
        found = yield from _streamed(job, loss)
    else:
        found = yield from _in_memory(job, below, loss)
    return {node.attributes[0].name: value for node, value in found.items() if node.op == "free"}


def check_losses(losses: Mapping[str, LazyTensor], tensors: Mapping[str, PlannedTensor]) -> None:
    """Raise UsageError for a gradient of no merged tensor, of another shape, or in float64 where merging is not."""
    for name, loss in losses.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise UsageError(f"A gradient is given of {name!r}, which is no tensor of the result.")
        if loss.shape != tensor.output.shape or not loss.dtype.is_float:
            raise UsageError(
                f"The gradient of {name!r} is {loss.dtype} of shape {loss.shape}; give floats of shape "
                f"{tensor.output.shape}."
            )
        works = [source.dtype for source in tensor.work.sources]
        if loss.dtype is DType.FLOAT64 and not tensor.work.wide and DType.FLOAT64 not in works:
            raise UsageError(
                f"The gradient of {name!r} is float64, but the tensor is merged in float32; give it so."
            )


def check_numbers(asked: Collection[str], known: Collection[str], bound: Collection[str]) -> None:
    """Raise UsageError where a number is not known, and GradientError where graphs are built with it (`bound`)."""
    for name in asked:
        if name not in known:
            raise UsageError(f"The recipe has no free number {shown(name)} to take a gradient of.")
        if name in bound:
            raise GradientError(
                f"The free number {shown(name)} has no gradient: its method counts or selects with it, or solves a "
                "system that it stands in. Search for it, or name the numbers whose gradients are wanted (`of`)."
            )


class Dependents:
    """What of a graph depends on free numbers, or on some of the sources."""

    def __init__(self, output: Value, sources: Collection[int] = ()) -> None:
        self.output = output
        self.nodes: dict[Node, None] = {}
        for node in walk([output]):
            is_one = node.op == "free" and not sources
            is_one = is_one or (node.op == "source" and node.attributes[0] in sources)
            if is_one or any(part in self.nodes for part in node.inputs):
                self.nodes[node] = None
        self.numbers = [node for node in self.nodes if node.op == "free"]
        measured = [node for node in self.nodes if isinstance(node, (Scalar, Threshold))]
        reduced = [n for n in measured if n.op in ("total", "dot", "peak", "largest")]
        self.reductions = [n for n in reduced if isinstance(n, Scalar) and n.scope is not Scope.ROW]
        # What a threshold selects has no slope of its own, whatever the threshold is taken over.
        used = {part for node in self.nodes if node.op != "above" for part in node.inputs}
        self._model = [
            node
            for node in reduced
            if node.scope is Scope.MODEL and (node in used or not isinstance(node, Threshold))
        ]

    @property
    def is_streamed(self) -> bool:
        """Whether all that depends on numbers is made of tiles, and of sums over them."""
        return not any(node.op in ("whole", "cut_value") for node in self.nodes) and not any(
            node.op == "peak" or node.columns is not None for node in self.reductions
        )

    def edge(self) -> list[Value]:
        """The values that depend on no number and that what depends on some is made of."""
        parts = dict.fromkeys(part for node in self.nodes for part in node.inputs)
        return [
            part
            for part in parts
            if isinstance(part, Value)
            and part not in self.nodes
            and part.op not in ("source", "broadcast")
        ]

    def refuse(self, name: str) -> None:
        """Raise GradientError where a statistic of the model depends on numbers."""
        if self._model:
            raise GradientError(
                f"Tensor {name!r} goes by a statistic of the whole model that depends on free numbers, whose gradient "
                "is not streamed; measure it per tensor, or search instead."
            )


def _streamed(job: TensorJob, loss: LazyTensor) -> Rounds:
    output = job.outputs[0]
    assert isinstance(output, Value)
    terms = free_terms(output)
    if terms is None:
        return _by_tiles(job, output, loss)
    return (yield from _inner_products(job, terms, loss))


# Inner products -------------------------------------------------------------------------------------------------


def _inner_products(job: TensorJob, terms: Mapping[Value, Scalar], loss: LazyTensor) -> Rounds:
    from weightsmith.graph import pull_scalars

    weights: dict[Scalar, list[float]] = {}
    for group in _groups(list(terms), job):
        place = source(len(job.sources))
        asked = tuple(dot(place, value) for value in group)
        sources = [*job.sources, loss]
        inner = TensorJob(job.name, job.shape, asked, sources, job.settings, wide=job.wide)
        inner.known.update(job.known)
        yield from inner.resolve()
        for value, reduction in zip(group, asked, strict=True):
            weights.setdefault(terms[value], []).append(float(inner.known[reduction]))
    numbers = {n: job.known[n] for n in walk(weights) if n.op == "free"}
    return pull_scalars({scalar: math.fsum(own) for scalar, own in weights.items()}, numbers)


def _groups(values: Sequence[Value], job: TensorJob) -> Iterator[list[Value]]:
    """Values that few sources are read for together, so that memory does not grow with the number of experts."""
    group: list[Value] = []
    read: frozenset[int] = frozenset()
    for value in values:
        own = used_sources([value], job.known)
        if group and len(read | own) > _MOST_SOURCES:
            yield group
            group, read = [], frozenset()
        group.append(value)
        read |= own
    if group:
        yield group


# Tiles ----------------------------------------------------------------------------------------------------------


def _by_tiles(job: TensorJob, output: Value, loss: LazyTensor) -> dict[Node, float]:
    return pulled_back(job, Dependents(output), loss)[1]


def pulled_back(
    job: TensorJob, below: Dependents, loss: LazyTensor
) -> tuple[Pull, dict[Node, float], GradientTiles]:
    """dL/dv of the numbers of a tensor, and of the sums over it that depend on what gradients are taken of.

    With what pulls back, and the tiles that it goes over.
    """
    from weightsmith.graph import Pull

    # Rows are measured again, in each tile, since their numbers have gradients too.
    known = {node: found for node, found in job.known.items() if not is_row_reduction(node)}
    spec = PassSpec(job.shape, tuple(s.dtype for s in job.sources), known=known, wide=job.wide)
    pull = Pull(spec, (*below.numbers, *below.reductions))
    tiles = GradientTiles(job, loss, len(below.nodes), spec)
    if not below.numbers and not below.reductions:
        return pull, {}, tiles
    found = pull.of_output(below.output, tiles.of([below.output]))
    for reduction in reversed(below.reductions):
        weight = found[reduction]
        if weight:
            assert isinstance(reduction, Scalar)
            more = pull.of_reduction(reduction, weight, tiles.of(reduction.inputs))
            found = {node: value + more[node] for node, value in found.items()}
    return pull, found, tiles


@dataclass(frozen=True, slots=True)
class GradientTiles:
    """A tensor in tiles as large as memory for `nodes` numbers of each element allows."""

    job: TensorJob
    loss: LazyTensor
    nodes: int
    spec: PassSpec

    def of(self, roots: Sequence[Node]) -> Iterator[GradientTile]:
        """The tiles with what a pass over the roots reads."""
        from weightsmith.graph import GradientTile

        used = used_sources(roots, self.spec.known)
        selections = [
            n for n in walk(roots, self.spec.known) if isinstance(n, Value) and n.op == "above"
        ]
        selecting = self._selecting(selections) if selections else None
        step = self._step(has_row_nodes(roots, self.spec.known))
        for start in range(0, self.job.numel, step):
            count = min(step, self.job.numel - start)
            buffers = [
                memoryview(read_bytes(tensor, start, start + count)) if i in used else None
                for i, tensor in enumerate(self.job.sources)
            ]
            loss = memoryview(read_bytes(self.loss, start, start + count)), self.loss.dtype
            masks = [memoryview(bytearray(count * self.spec.work.itemsize)) for _ in selections]
            if selecting is not None:
                selecting.run(buffers, start, count, masks)
            selected: dict[Node, memoryview] = dict(zip(selections, masks, strict=True))
            yield GradientTile(start, count, buffers, loss, selected)

    def _selecting(self, selections: Sequence[Value]) -> TilePass:
        """The pass of the merge's own backend for masks of what thresholds select."""
        outputs = tuple((mask, self.spec.work) for mask in selections)
        spec = replace(self.spec, outputs=outputs)
        return self.job.settings.backend.compile(spec)

    def _step(self, rows: bool) -> int:
        step = max(1, min(_LARGEST_TILE, _HELD_NUMBERS // max(self.nodes, 1)))
        length = self.job.shape[-1] if self.job.shape else 1
        return max(1, step // max(length, 1)) * max(length, 1) if rows else step


# Whole tensors --------------------------------------------------------------------------------------------------


def _in_memory(job: TensorJob, below: Dependents, loss: LazyTensor) -> Rounds:
    from weightsmith.graph import pull_tensor

    sources, known, held_loss = yield from in_memory(job, below, loss)
    return pull_tensor(below.output, sources, held_loss, known, below.numbers)


def in_memory(job: TensorJob, below: Dependents, loss: LazyTensor) -> Rounds:
    """The sources, what is known of the graph, and dL/dtheta, as torch tensors.

    Everything up to where gradients come in is computed as merges compute it, so that the same is selected.
    """
    import torch

    from weightsmith.graph import torch_dtype

    work = DType.FLOAT64 if job.wide else work_dtype(s.dtype for s in job.sources)
    edge = [value for value in below.edge() if _has_shape(value, job)]
    kept = [MemoryTensor.empty(job.name, work, job.shape) for _ in edge]
    if edge:
        inner = TensorJob(job.name, job.shape, tuple(edge), list(job.sources), job.settings)
        inner.members, inner.wide = dict(job.members), job.wide
        inner.known.update(job.known)
        yield from inner.compute([Target(work, MemorySink(one)) for one in kept])

    def held(tensor: LazyTensor) -> torch.Tensor:
        data = read_bytes(tensor, 0, tensor.numel)
        return torch.frombuffer(data, dtype=torch_dtype(tensor.dtype)).reshape(tensor.shape)

    known: dict[Node, Any] = dict(job.known)
    known |= {value: held(one).reshape(-1) for value, one in zip(edge, kept, strict=True)}
    return [held(tensor) for tensor in job.sources], known, held(loss)


def _has_shape(value: Value, job: TensorJob) -> bool:
    """Whether a value is one of the tensor's elements, and not of statistics of another shape."""
    read = used_sources([value], job.known)
    return not read or any(job.sources[i].shape == job.shape for i in read)
