"""The vocabulary part of a plan's report."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from weightsmith.cli.presenting import Block, TextTable

if TYPE_CHECKING:
    from weightsmith.inspection import MeasuredRule, VocabularySummary
    from weightsmith.vocabularies import TableReport


def vocabulary_blocks(summary: VocabularySummary) -> Iterator[Block]:
    """What happens to rows and special tokens, and how well the rules for missing rows do."""
    yield TextTable(
        f"Vocabulary: {summary.source}, {summary.tokens:,} tokens in {summary.rows:,} rows",
        ("checkpoint", "table", "same row", "moved", "from others", "computed", "zero", "dropped"),
        [_row(report) for report in summary.tables],
        frozenset({2, 3, 4, 6, 7}),
    )
    special = [
        (
            token.role,
            repr(token.text),
            f"{token.id:,}",
            ", ".join(
                f"{label}: {'none' if row is None else format(row, ',')}"
                for label, row in token.rows.items()
            ),
        )
        for token in summary.special
    ]
    yield TextTable(
        "Special tokens", ("role", "token", "id", "its row before"), special, frozenset({2})
    )
    if summary.measured:
        heads = ("checkpoint", "table", "rule", "error", "zero", "mean", "cosine")
        rows = [_error_row(one) for one in summary.measured]
        yield TextTable("Error on held-out tokens", heads, rows, frozenset({3, 4, 5, 6}))
        for one in summary.measured:
            if one.held_out is None:
                yield f"{one.rule} on {one.tensor} of {one.checkpoint}: {one.problem}"
    yield f"Chat template: {summary.template}."


def _row(report: TableReport) -> tuple[str, ...]:
    made = [f"{count:,} by {rule}" for rule, count in report.rules.items()]
    made += [f"{report.chosen:,} as named"] if report.chosen else []
    made += [f"{report.padding:,} padding"] if report.padding else []
    return (
        report.checkpoint,
        report.tensor,
        f"{report.in_place:,}",
        f"{report.moved:,}",
        f"{report.borrowed:,}",
        ", ".join(made) or "0",
        f"{report.zero:,}",
        f"{report.dropped:,}",
    )


def _error_row(one: MeasuredRule) -> tuple[str, ...]:
    found = one.held_out
    if found is None:
        return (one.checkpoint, one.tensor, one.rule, "-", "-", "-", "-")
    references = {name: f"{errors.mean:.3f}" for name, errors in found.references.items()}
    return (
        one.checkpoint,
        one.tensor,
        one.rule,
        f"{found.errors.mean:.3f}",
        references.get("zero", "-"),
        references.get("mean", "-"),
        f"{found.errors.cosine:.3f}",
    )
