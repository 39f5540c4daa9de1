"""What a plan does to vocabularies, with the errors of its rules measured on tokens that are known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from weightsmith.engine import Plan
from weightsmith.errors import WeightsmithError
from weightsmith.vocabularies import (
    AlignedRows,
    Errors,
    FittedRows,
    HeldOut,
    SpecialToken,
    TableReport,
    held_out_error,
)

# Held-out tokens per rule and table: enough for two digits of a mean error, and seconds of work.
_SAMPLE = 200


@dataclass(frozen=True, slots=True)
class MeasuredRule:
    """The error of one rule on one table; `problem` says why there is none."""

    checkpoint: str
    tensor: str
    rule: str
    rows: int
    held_out: HeldOut | None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class VocabularySummary:
    """The target vocabulary and the fate of tables, special tokens and chat template (see `Outcome`)."""

    source: str
    tokens: int
    rows: int
    tables: tuple[TableReport, ...]
    special: tuple[SpecialToken, ...]
    template: str
    measured: tuple[MeasuredRule, ...]

    def to_mapping(self) -> dict[str, Any]:
        """As plain data, for JSON."""
        return {
            "source": self.source,
            "tokens": self.tokens,
            "rows": self.rows,
            "chat_template": self.template,
            "tables": [_table(report) for report in self.tables],
            "special_tokens": [
                {"role": s.role, "token": s.text, "id": s.id, "rows": dict(s.rows)}
                for s in self.special
            ],
            "held_out": [_held_out(one) for one in self.measured],
        }


def summarize_vocabulary(plan: Plan) -> VocabularySummary:
    """What a plan with a tokenizer section does.

    Reads the rows that the errors of rules are measured on, and fits the rules without them.
    """
    outcome = plan.resolved.vocabulary
    assert outcome is not None
    assert outcome.source is not None
    return VocabularySummary(
        outcome.source,
        outcome.tokens,
        outcome.rows,
        outcome.tables,
        outcome.special,
        outcome.template,
        tuple(_measured(plan)),
    )


def _measured(plan: Plan) -> list[MeasuredRule]:
    found = []
    merged = {report.checkpoint for report in _tables(plan)}
    for label, checkpoint in plan.resolved.checkpoints.items():
        for name, tensor in checkpoint.tensors.items():
            if not isinstance(tensor, AlignedRows) or label not in merged:
                continue
            rules = (fill.rows for fill in tensor.fills)
            found += [_of(label, name, rows) for rows in rules if isinstance(rows, FittedRows)]
    return found


def _tables(plan: Plan) -> tuple[TableReport, ...]:
    outcome = plan.resolved.vocabulary
    return () if outcome is None else outcome.tables


def _of(label: str, name: str, rows: FittedRows) -> MeasuredRule:
    try:
        error = held_out_error(rows.rule, rows.missing, largest=_SAMPLE)
    except WeightsmithError as problem:
        return MeasuredRule(label, name, rows.rule.name, rows.count, None, str(problem))
    why = "too few tokens are known" if error is None else None
    return MeasuredRule(label, name, rows.rule.name, rows.count, error, why)


def _table(report: TableReport) -> dict[str, Any]:
    return {
        "checkpoint": report.checkpoint,
        "tensor": report.tensor,
        "kind": report.kind,
        "rows": report.rows,
        "in_place": report.in_place,
        "moved": report.moved,
        "borrowed": report.borrowed,
        "chosen": report.chosen,
        "computed": dict(report.rules),
        "zero": report.zero,
        "padding": report.padding,
        "dropped": report.dropped,
        "nowhere": list(report.unresolved),
    }


def _held_out(one: MeasuredRule) -> dict[str, Any]:
    found: dict[str, Any] = {
        "checkpoint": one.checkpoint,
        "tensor": one.tensor,
        "rule": one.rule,
        "rows": one.rows,
    }
    if one.held_out is None:
        return found | {"problem": one.problem}
    return found | {
        "tokens": one.held_out.count,
        "fitted_on": one.held_out.fitted_on,
        "error": _errors(one.held_out.errors),
        "references": {name: _errors(e) for name, e in one.held_out.references.items()},
        "facts": dict(one.held_out.facts),
    }


def _errors(errors: Errors) -> dict[str, float]:
    return {"mean": errors.mean, "median": errors.median, "cosine": errors.cosine}
