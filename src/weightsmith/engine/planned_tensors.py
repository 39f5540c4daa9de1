"""What is done for each output tensor: read from its formula and its graph, before anything is read."""

from __future__ import annotations

import enum
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

from weightsmith.checkpoints import Checkpoint
from weightsmith.engine.trace import Tracer
from weightsmith.errors import RecipeError
from weightsmith.findings import Finding, Severity
from weightsmith.recipes.formula import (
    Cast,
    Formula,
    Leaf,
    Merge,
    OutputTensor,
    Resolved,
    Same,
    Sum,
    distinct_leaves,
)
from weightsmith.tensors.columns import Columns
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.graph import Scalar, Scope, walk
from weightsmith.tensors.passes import has_row_nodes, reduction_levels
from weightsmith.tensors.records import record
from weightsmith.tensors.stored import ReadingCost


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
    another tensor of those statistics is. `columns` has the view of each number per column.
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
    resolved: Resolved,
) -> tuple[tuple[PlannedTensor, ...], tuple[PlannedTensor, ...], list[Finding]]:
    """The outputs, the tensors that are measured only, and what methods refuse."""
    tracer = Tracer()
    facts: dict[Hashable, _Facts] = {}
    planned: list[PlannedTensor] = []
    findings: dict[str, Finding] = {}
    sites: set[str] = set()
    for tensor in (*resolved.outputs, *resolved.measured):
        action = action_of(tensor, resolved.checkpoints)
        found = _Facts()
        if action is Action.COMPUTE:
            key = (tensor.shape, _shape_of_formula(tensor.formula))
            if key not in facts:
                try:
                    facts[key] = _facts(tracer, tensor)
                except RecipeError as error:
                    facts[key] = _Facts()
                    refused = Finding(Severity.ERROR, "method", tensor.name, str(error))
                    findings.setdefault(refused.message.split(":", 1)[-1], refused)
            found = facts[key]
        stored = [
            resolved.checkpoints[f.checkpoint].tensors[f.tensor]
            for f in distinct_leaves(tensor.formula)
        ]
        # The parts of one tensor are computed in one reading.
        is_again = tensor.part_of in sites
        if tensor.part_of is not None:
            sites.add(tensor.part_of)
        read = 0 if is_again else found.passes * ReadingCost.of(stored).stored_bytes
        planned.append(
            PlannedTensor(
                tensor,
                action,
                found.passes,
                read,
                found.model_scope,
                found.matrices > 0,
                found.rows,
                matrices=found.matrices,
                results=found.results,
                columns=found.columns,
            )
        )
    written = _widened(planned, resolved.checkpoints)
    count = len(resolved.outputs)
    measured = tuple(
        replace(tensor, read_bytes=tensor.read_bytes // tensor.passes * (tensor.passes - 1))
        for tensor in written[count:]
        if tensor.model_scope
    )
    return written[:count], measured, list(findings.values())


def _widened(
    planned: Sequence[PlannedTensor], checkpoints: Mapping[str, Checkpoint]
) -> tuple[PlannedTensor, ...]:
    """The tensors of model-wide statistics in one work precision, since magnitudes are compared across them."""
    leaves = {leaf for t in planned if t.model_scope for leaf in distinct_leaves(t.output.formula)}
    wide = any(
        checkpoints[leaf.checkpoint].tensors[leaf.tensor].dtype is DType.FLOAT64 for leaf in leaves
    )
    return tuple(replace(t, wide=True) if wide and t.model_scope else t for t in planned)


@dataclass(frozen=True, slots=True)
class _Facts:
    passes: int = 1
    model_scope: bool = False
    rows: bool = False
    matrices: int = 0
    results: int = 0
    columns: tuple[Columns, ...] = ()


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


def _shape_of_formula(formula: Formula) -> Hashable:
    """A key that is equal for formulas that differ only in the names of the tensors they read."""
    if isinstance(formula, Leaf):
        return formula.checkpoint
    if isinstance(formula, Same):
        return tuple(leaf.checkpoint for leaf in formula.leaves)
    if isinstance(formula, Cast):
        return (formula.dtype, _shape_of_formula(formula.inner))
    if isinstance(formula, Sum):
        return tuple((c, _shape_of_formula(f)) for c, f in formula.terms)
    assert isinstance(formula, Merge)
    base = None if formula.base is None else _shape_of_formula(formula.base)
    experts = tuple(_shape_of_formula(f) for f in formula.experts)
    origin = None if formula.origin is None else _shape_of_formula(formula.origin)
    numbers = (formula.preset, formula.shared, formula.per_expert, formula.modifiers)
    statistics = tuple((s.kind, s.shape, s.divisor, len(s.leaves)) for s in formula.statistics)
    at = formula.place
    place = (at.shape, at.role, at.layer is None, at.layers, at.input_first)
    return (formula.method, *numbers, base, origin, experts, statistics, place)
