"""A plan in a few rows: inputs, steps, cost."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightsmith.checkpoints import Checkpoint
from weightsmith.engine import Action, Plan, PlannedTensor, PredictedTime, predict
from weightsmith.findings import Finding
from weightsmith.recipes import Cast, Formula, Leaf, Merge, Sum, distinct_leaves
from weightsmith.tensors import LazyTensor, ReadingCost, behind

if TYPE_CHECKING:
    from weightsmith.inspection.vocabulary_summary import VocabularySummary


@dataclass(frozen=True, slots=True)
class InputRow:
    """One input checkpoint: what of it is read (each tensor counted once), and what it is in the merge.

    What an input is decoded with has a row of its own behind it, and its bytes are not counted for the input.
    """

    reference: str
    path: Path
    part: str
    tensors: int
    tensors_read: int
    bytes_read: int
    dtypes: tuple[str, ...]

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "reference": self.reference,
            "path": str(self.path),
            "part": self.part,
            "tensors": self.tensors,
            "tensors_read": self.tensors_read,
            "bytes_read": self.bytes_read,
            "dtypes": list(self.dtypes),
        }


@dataclass(frozen=True, slots=True)
class StepRow:
    """Output tensors that come about in the same way, in the same number of passes."""

    what: str
    passes: int
    tensors: int
    elements: int
    read_bytes: int

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "what": self.what,
            "tensors": self.tensors,
            "elements": self.elements,
            "passes": self.passes,
            "read_bytes": self.read_bytes,
        }


@dataclass(frozen=True, slots=True)
class FreeRow:
    """A free number, or a mask of `count` of them, and how many tensors are made with it."""

    name: str
    low: float
    high: float
    start: float
    tensors: int
    count: int = 1

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "name": self.name,
            "low": self.low,
            "high": self.high,
            "start": self.start,
            "tensors": self.tensors,
            "count": self.count,
        }


@dataclass(frozen=True, slots=True)
class PlanSummary:
    """All that `weightsmith plan` shows."""

    inputs: tuple[InputRow, ...]
    steps: tuple[StepRow, ...]
    cost: PredictedTime
    input_bytes: int
    read_bytes: int
    write_bytes: int
    shards: int
    peak_bytes: int
    memory_bytes: int
    backend: str
    threads: int
    digest: str
    findings: tuple[Finding, ...]
    errors: int
    vocabulary: VocabularySummary | None = None
    free: tuple[FreeRow, ...] = ()

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        vocabulary = {} if self.vocabulary is None else {"vocabulary": self.vocabulary.to_mapping()}
        free = {"free": [row.to_mapping() for row in self.free]} if self.free else {}
        return {
            "runnable": not self.errors and not self.free,
            "digest": self.digest,
            "inputs": [row.to_mapping() for row in self.inputs],
            "computed": [row.to_mapping() for row in self.steps],
            "read_bytes": self.read_bytes,
            "write_bytes": self.write_bytes,
            "shards": self.shards,
            "peak_memory_bytes": self.peak_bytes,
            "memory_bytes": self.memory_bytes,
            "seconds": {"warm": self.cost.warm_seconds, "cold": self.cost.cold_seconds},
            "backend": self.backend,
            "threads": self.threads,
            **vocabulary,
            **free,
            "findings": [finding.to_mapping() for finding in self.findings],
        }


def summarize_plan(plan: Plan) -> PlanSummary:
    """The summary of a plan; reads no file but the rows that rules for missing tokens are measured on."""
    return PlanSummary(
        inputs=_inputs(plan),
        steps=_steps(plan),
        cost=predict(plan),
        input_bytes=plan.input_bytes,
        read_bytes=plan.read_bytes,
        write_bytes=plan.write_bytes,
        shards=len(plan.layout.shards),
        peak_bytes=plan.peak_bytes,
        memory_bytes=plan.memory_bytes,
        backend=plan.backend.description,
        threads=plan.threads,
        digest=plan.digest,
        findings=plan.findings,
        errors=len(plan.errors),
        vocabulary=_vocabulary(plan),
        free=_free(plan),
    )


def _free(plan: Plan) -> tuple[FreeRow, ...]:
    if plan.free is None:
        return ()
    counts = plan.free.tensors()
    numbers = tuple(
        FreeRow(number.name, number.low, number.high, number.start, counts[number.name])
        for number in plan.free.numbers.values()
    )
    masks = tuple(
        FreeRow(mask.name, mask.low, mask.high, mask.start, len(mask.tensors), mask.count)
        for mask in plan.free.masks.values()
    )
    return numbers + masks


def _vocabulary(plan: Plan) -> VocabularySummary | None:
    outcome = plan.resolved.vocabulary
    if outcome is None or outcome.source is None:
        return None
    # Imported here because it knows all rules for rows, and few recipes have a tokenizer section.
    from weightsmith.inspection.vocabulary_summary import summarize_vocabulary

    return summarize_vocabulary(plan)


def _inputs(plan: Plan) -> tuple[InputRow, ...]:
    read: dict[str, set[str]] = defaultdict(set)
    for tensor in plan.tensors:
        for leaf in distinct_leaves(tensor.output.formula):
            read[leaf.checkpoint].add(leaf.tensor)
    rows: list[InputRow] = []
    for label, checkpoint in plan.resolved.checkpoints.items():
        if not plan.output.is_given(label):
            continue
        tensors = [checkpoint.tensors[name] for name in sorted(read[label])]
        rows += _rows(checkpoint, checkpoint.source, _part(plan, label), tensors)
    return tuple(rows)


def _rows(
    checkpoint: Checkpoint, reference: str, part: str, read: Sequence[LazyTensor]
) -> list[InputRow]:
    """The row of a checkpoint of which some tensors are read, and those of the checkpoints that it is decoded with."""
    dtypes: Counter[str] = Counter()
    for tensor in read:
        dtypes[tensor.dtype.value] += tensor.nbytes
    used = {id(tensor) for tensor in behind(read)}
    bytes_read = ReadingCost.of(read).stored_bytes
    below = []
    for one in checkpoint.behind:
        own = [tensor for tensor in one.checkpoint.tensors.values() if id(tensor) in used]
        bytes_read -= ReadingCost.of(own).stored_bytes
        what = f"base of {checkpoint.name}"
        below += _rows(one.checkpoint, one.reference, what, own)
    row = InputRow(
        reference=reference,
        path=checkpoint.path,
        part=part,
        tensors=len(checkpoint.tensors),
        tensors_read=len(read),
        bytes_read=max(0, bytes_read),
        dtypes=tuple(name for name, _ in dtypes.most_common()),
    )
    return [row, *below]


def _part(plan: Plan, label: str) -> str:
    parts = []
    if label == plan.resolved.base:
        parts.append("base")
    if label == plan.resolved.config_source:
        parts.append("config")
    if label in plan.resolved.statistics:
        parts.append("statistics")
    if not parts and plan.resolved.vocabulary is not None:
        tables = plan.resolved.vocabulary.tables
        if tables and label not in {report.checkpoint for report in tables}:
            parts.append("vocabulary")
    return ", ".join(parts) or "expert"


def _steps(plan: Plan) -> tuple[StepRow, ...]:
    groups: dict[tuple[str, int], list[PlannedTensor]] = defaultdict(list)
    for tensor in plan.tensors:
        groups[what_is_done(tensor), tensor.work.passes].append(tensor)
    rows = [
        StepRow(
            what=what,
            passes=passes,
            tensors=len(tensors),
            elements=sum(math.prod(t.output.shape) for t in tensors),
            read_bytes=sum(t.work.read_bytes for t in tensors),
        )
        for (what, passes), tensors in groups.items()
    ]
    return tuple(sorted(rows, key=lambda row: -row.elements))


def what_is_done(tensor: PlannedTensor) -> str:
    """How a tensor comes about, in words: the methods from the inside out, `copy`, `sum` or `convert`."""
    if tensor.work.action is not Action.COMPUTE:
        return str(tensor.work.action.value)
    return " > ".join(_words(tensor.output.formula))


def _words(formula: Formula) -> list[str]:
    if isinstance(formula, Cast):
        return _words(formula.inner)
    if isinstance(formula, Leaf):
        return ["convert"]
    if isinstance(formula, Merge):
        return [
            *_of_inner(formula.models),
            *(m.modifier for m in formula.modifiers),
            formula.method,
        ]
    if isinstance(formula, Sum):
        return [*_of_inner(formula.models), "sum"]
    return ["compare and copy"]


def _of_inner(formulas: Sequence[Formula]) -> list[str]:
    """What is done inside formulas that are more than a stored tensor, each word once."""
    bare = [f.inner if isinstance(f, Cast) else f for f in formulas]
    return list(dict.fromkeys(word for f in bare if not isinstance(f, Leaf) for word in _words(f)))
