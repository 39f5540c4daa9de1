"""What is done for each output tensor: read from its formula and its graph, before anything is read."""

from __future__ import annotations

import enum
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from weightsmith.checkpoints import Checkpoint
from weightsmith.engine.outputs.made_tensors import MadeTensor, Reading
from weightsmith.engine.outputs.storage import PLAIN, StorageForm
from weightsmith.engine.planning.trace import Tracer
from weightsmith.errors import RecipeError
from weightsmith.findings import Finding, Severity
from weightsmith.graph import Columns, Scalar, Scope, has_row_nodes, reduction_levels, walk
from weightsmith.recipes import Leaf, OutputTensor, Resolved, Same, distinct_leaves
from weightsmith.tensors import DType, ReadingCost, record


class Action(enum.Enum):
    """What is done for one output tensor."""

    COPY = "copy"
    COMPARE = "compare and copy"
    COMPUTE = "compute"


@record
@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """One output tensor: what is done, how often its inputs are streamed, and what that reads.

    `model_scope`: it takes part in statistics of the whole model. `whole`: it is held in memory whole,
    with its inputs; `matrices` of them go into its largest matrix method at a time, and `results` come out of all.
    `rows`: it is streamed by whole rows. `wide`: it is computed in float64 because
    another tensor of those statistics is. `columns` has the view of each number per column. `storage` is its form in
    the file; tensors of one `reading` are computed in one reading of what they are made of, and have `written_bytes`
    for each element together.
    """

    output: OutputTensor
    action: Action
    passes: int
    read_bytes: int
    model_scope: bool = False
    whole: bool = False
    rows: bool = False
    wide: bool = False
    matrices: int = 0
    results: int = 0
    columns: tuple[Columns, ...] = ()
    storage: StorageForm = PLAIN
    reading: str = ""
    written_bytes: int = 0

    @property
    def site(self) -> str:
        """What counts once in statistics of the model."""
        return self.output.tied_to or self.reading


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
    written = _widened(planned, resolved.checkpoints)
    measured = tuple(
        replace(tensor, read_bytes=tensor.read_bytes // tensor.passes * (tensor.passes - 1))
        for tensor in written[count:]
        if tensor.model_scope
    )
    return written[:count], measured, list(planner.findings.values())


def _widened(
    planned: Sequence[PlannedTensor], checkpoints: Mapping[str, Checkpoint]
) -> tuple[PlannedTensor, ...]:
    """The tensors of model-wide statistics in one work precision, since magnitudes are compared across them."""
    concerned = {t.reading for t in planned if t.model_scope}
    leaves = {leaf for t in planned if t.model_scope for leaf in distinct_leaves(t.output.formula)}
    wide = any(
        checkpoints[leaf.checkpoint].tensors[leaf.tensor].dtype is DType.FLOAT64 for leaf in leaves
    )
    return tuple(replace(t, wide=True) if wide and t.reading in concerned else t for t in planned)


@dataclass(frozen=True, slots=True)
class _Facts:
    passes: int = 1
    model_scope: bool = False
    rows: bool = False
    matrices: int = 0
    results: int = 0
    columns: tuple[Columns, ...] = ()


@dataclass(slots=True)
class _Planner:
    """What graphs say of formulas, each kind of formula being traced once; `findings` are what methods refuse."""

    checkpoints: Mapping[str, Checkpoint]
    findings: dict[str, Finding] = field(default_factory=dict)
    _tracer: Tracer = field(default_factory=Tracer)
    _known: dict[Hashable, _Facts] = field(default_factory=dict)

    def planned(self, reading: Reading) -> Iterator[PlannedTensor]:
        """The tensors of one reading; what they read is counted with the first."""
        facts = [self._facts(made.tensor) for made in reading]
        leaves = dict.fromkeys(
            leaf for made in reading for leaf in distinct_leaves(made.tensor.formula)
        )
        stored = [self.checkpoints[leaf.checkpoint].tensors[leaf.tensor] for leaf in leaves]
        read = max(found.passes for found in facts) * ReadingCost.of(stored).stored_bytes
        for made, found in zip(reading, facts, strict=True):
            is_first = made is reading[0]
            yield PlannedTensor(
                made.tensor,
                action_of(made.tensor, self.checkpoints),
                found.passes,
                read if is_first else 0,
                found.model_scope,
                found.matrices > 0,
                found.rows,
                matrices=found.matrices,
                results=found.results,
                columns=found.columns,
                storage=made.storage,
                reading=reading[0].tensor.name,
                written_bytes=sum(made.tensor.dtype.itemsize for made in reading),
            )

    def _facts(self, tensor: OutputTensor) -> _Facts:
        if action_of(tensor, self.checkpoints) is not Action.COMPUTE:
            return _Facts()
        key = (tensor.shape, tensor.formula.likeness)
        if key not in self._known:
            try:
                self._known[key] = _facts(self._tracer, tensor)
            except RecipeError as error:
                self._known[key] = _Facts()
                refused = Finding(Severity.ERROR, "method", tensor.name, str(error))
                self.findings.setdefault(refused.message.split(":", 1)[-1], refused)
        return self._known[key]


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
