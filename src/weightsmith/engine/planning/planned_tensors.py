"""What is done for each output tensor: read from its formula and its graph, before anything is read."""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from weightsmith.checkpoints import Checkpoint
from weightsmith.engine.outputs.made_tensors import MadeTensor, Reading
from weightsmith.engine.outputs.storage import StorageForm
from weightsmith.engine.planning.trace import Tracer
from weightsmith.errors import RecipeError
from weightsmith.findings import Finding, Severity
from weightsmith.graph import (
    Columns,
    Scalar,
    Scope,
    has_row_nodes,
    reduction_levels,
    walk,
    work_dtype,
)
from weightsmith.recipes import Leaf, OutputTensor, Resolved, Same, distinct_leaves
from weightsmith.tensors import DType, ReadingCost, record


class Action(enum.Enum):
    """What is done for one output tensor."""

    COPY = "copy"
    COMPARE = "compare and copy"
    COMPUTE = "compute"


class SourceForm(NamedTuple):
    """What planning asks of a tensor that is read."""

    dtype: DType
    shape: tuple[int, ...]
    cost: ReadingCost


@dataclass(frozen=True, slots=True)
class TensorWork:
    """What is done for each output tensor of one kind: all that are read, computed and written alike.

    `sources` are the tensors that its reading reads, `read_bytes` what that takes in all passes, counted with the first
    tensor of a reading. `model_scope`: it takes part in statistics of the whole model. `matrices` are held in memory
    whole and go into its largest matrix method at a time, and `results` come out of all. `rows`: it is streamed by
    whole rows. `wide`: it is computed in float64 because another tensor of those statistics is. `columns` has the view
    of each number per column. `storage` is its form in the file; tensors of one reading have `written_bytes` for each
    element together.
    """

    action: Action
    shape: tuple[int, ...]
    sources: tuple[SourceForm, ...]
    passes: int
    read_bytes: int
    model_scope: bool
    rows: bool
    matrices: int
    results: int
    columns: tuple[Columns, ...]
    storage: StorageForm
    written_bytes: int
    wide: bool = False

    @property
    def whole(self) -> bool:
        """Whether it is held in memory whole, with its inputs."""
        return self.matrices > 0

    @property
    def held_bytes(self) -> int:
        """What a tensor with a matrix method keeps between its tasks: results, and what it reads."""
        dtype = DType.FLOAT64 if self.wide else work_dtype(source.dtype for source in self.sources)
        shapes = [self.shape, *(source.shape for source in self.sources)]
        more = max(0, self.results - 1) * math.prod(self.shape)
        return dtype.itemsize * (sum(math.prod(shape) for shape in shapes) + more)


@record
@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One output tensor with what is done for it; tensors of one `reading` are computed in one reading of what they
    are made of.
    """

    output: OutputTensor
    work: TensorWork
    reading: str

    @property
    def site(self) -> str:
        """What counts once in statistics of the model."""
        return self.output.tied_to or self.reading


def works_of(tensors: Iterable[PlannedTensor]) -> list[tuple[TensorWork, int]]:
    """What is done for each kind of tensor, and how many there are of it, in the order of the first."""
    works = [tensor.work for tensor in tensors]
    by_id = {id(work): work for work in works}
    return [(by_id[one], count) for one, count in Counter(map(id, works)).items()]


def action_of(tensor: OutputTensor, checkpoints: Mapping[str, Checkpoint]) -> Action:
    """How an output tensor comes about."""
    if isinstance(tensor.formula, Same):
        return Action.COMPARE
    if isinstance(tensor.formula, Leaf):
        stored = checkpoints[tensor.formula.checkpoint].tensors[tensor.formula.tensor]
        if stored.dtype is tensor.dtype:
            return Action.COPY
    return Action.COMPUTE


def planned_tensors(
    resolved: Resolved, made: Sequence[Reading]
) -> tuple[tuple[PlannedTensor, ...], tuple[PlannedTensor, ...], list[Finding]]:
    """The tensors that an output makes, those that are measured only, and what methods refuse."""
    planner = _Planner(resolved.checkpoints)
    readings = [*made, *((MadeTensor(tensor),) for tensor in resolved.measured)]
    planned = [tensor for reading in readings for tensor in planner.planned(reading)]
    count = sum(len(reading) for reading in made)
    written = _widened(planned)
    measured = [tensor for tensor in written[count:] if tensor.work.model_scope]
    return tuple(written[:count]), tuple(_changed(measured, _not_written)), planner.findings()


def _widened(planned: list[PlannedTensor]) -> list[PlannedTensor]:
    """The tensors of model-wide statistics in one work precision, since magnitudes are compared across them."""
    concerned = [t for t in planned if t.work.model_scope]
    sources = (source for work, _ in works_of(concerned) for source in work.sources)
    if all(source.dtype is not DType.FLOAT64 for source in sources):
        return planned
    readings = {t.reading for t in concerned}
    wide = iter(_changed([t for t in planned if t.reading in readings], _in_float64))
    return [next(wide) if t.reading in readings else t for t in planned]


def _in_float64(work: TensorWork) -> TensorWork:
    return replace(work, wide=True)


def _not_written(work: TensorWork) -> TensorWork:
    """The last pass is the one that writes."""
    return replace(work, read_bytes=work.read_bytes // work.passes * (work.passes - 1))


def _changed(
    planned: Sequence[PlannedTensor], change: Callable[[TensorWork], TensorWork]
) -> list[PlannedTensor]:
    """The same tensors with another work, which those of one kind still share."""
    changed = {id(work): change(work) for work, _ in works_of(planned)}
    return [PlannedTensor(t.output, changed[id(t.work)], t.reading) for t in planned]


@dataclass(frozen=True, slots=True)
class _Facts:
    passes: int = 1
    model_scope: bool = False
    rows: bool = False
    matrices: int = 0
    results: int = 0
    columns: tuple[Columns, ...] = ()


class _Planner:
    """What graphs say of formulas, each kind of formula being traced once, and each kind of tensor planned once."""

    def __init__(self, checkpoints: Mapping[str, Checkpoint]) -> None:
        self._checkpoints = checkpoints
        self._tensors = {label: found.tensors for label, found in checkpoints.items()}
        self._tracer = Tracer()
        self._traced: dict[Hashable, _Facts] = {}
        self._works: dict[Hashable, tuple[TensorWork, ...]] = {}
        self._refused: dict[str, Finding] = {}

    def findings(self) -> list[Finding]:
        """What methods refused."""
        return list(self._refused.values())

    def planned(self, reading: Reading) -> Iterator[PlannedTensor]:
        """The tensors of one reading; what they read is counted with the first."""
        if len(reading) == 1:
            leaves = distinct_leaves(reading[0].tensor.formula)
        else:
            every = (leaf for made in reading for leaf in distinct_leaves(made.tensor.formula))
            leaves = tuple(dict.fromkeys(every))
        stored = [self._tensors[label][name] for label, name in leaves]
        sources = tuple([SourceForm(t.dtype, t.shape, t.cost) for t in stored])
        kind = (tuple([made.likeness for made in reading]), sources)
        works = self._works.get(kind)
        if works is None:
            works = self._works[kind] = self._worked_out(reading, sources)
        first = reading[0].tensor.name
        return (
            PlannedTensor(made.tensor, work, first)
            for made, work in zip(reading, works, strict=True)
        )

    def _worked_out(
        self, reading: Reading, sources: tuple[SourceForm, ...]
    ) -> tuple[TensorWork, ...]:
        facts = [self._facts(made.tensor) for made in reading]
        once = sum(source.cost.stored_bytes for source in sources)
        read = max(found.passes for found in facts) * once
        written = sum(made.tensor.dtype.itemsize for made in reading)
        return tuple(
            TensorWork(
                action_of(made.tensor, self._checkpoints),
                made.tensor.shape,
                sources,
                found.passes,
                read if made is reading[0] else 0,
                found.model_scope,
                found.rows,
                found.matrices,
                found.results,
                found.columns,
                made.storage,
                written,
            )
            for made, found in zip(reading, facts, strict=True)
        )

    def _facts(self, tensor: OutputTensor) -> _Facts:
        if action_of(tensor, self._checkpoints) is not Action.COMPUTE:
            return _Facts()
        key = (tensor.shape, tensor.formula.likeness)
        if key not in self._traced:
            try:
                self._traced[key] = _facts(self._tracer, tensor)
            except RecipeError as error:
                self._traced[key] = _Facts()
                refused = Finding(Severity.ERROR, "method", tensor.name, str(error))
                self._refused.setdefault(refused.message.replace(repr(tensor.name), ""), refused)
        return self._traced[key]


def _facts(tracer: Tracer, tensor: OutputTensor) -> _Facts:
    traced = tracer.trace(tensor)
    nodes = walk([traced.measured])
    return _Facts(
        passes=len(reduction_levels([traced.measured])) + 1,
        model_scope=any(getattr(node, "scope", None) is Scope.MODEL for node in nodes),
        rows=has_row_nodes([traced.measured], {}),
        matrices=max((len(node.inputs) for node in nodes if node.op == "whole"), default=0),
        results=sum(node.op in ("whole", "part") for node in nodes),
        columns=tuple(n.columns for n in nodes if isinstance(n, Scalar) and n.columns is not None),
    )
