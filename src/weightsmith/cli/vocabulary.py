"""The vocabulary part of a plan's report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightsmith.cli.output import Table, show_line, show_table

if TYPE_CHECKING:
    from weightsmith.inspection.vocabulary_summary import Measured, VocabularySummary
    from weightsmith.vocabularies.alignment import TableReport


def show_vocabulary(summary: VocabularySummary) -> None:
    """Tables of what happens to rows and special tokens, and how well the rules for missing rows do."""
    show_table(
        Table(
            f"Vocabulary: {summary.source}, {summary.tokens:,} tokens in {summary.rows:,} rows",
            ("checkpoint", "table", "in place", "moved", "borrowed", "made", "zero", "left out"),
            [_row(report) for report in summary.tables],
            frozenset({2, 3, 4, 6, 7}),
        )
    )
    show_table(
        Table(
            "Special tokens",
            ("role", "token", "id", "own row of"),
            [
                (
                    special.role,
                    repr(special.text),
                    f"{special.id:,}",
                    ", ".join(
                        f"{label}: {'none' if row is None else format(row, ',')}"
                        for label, row in special.rows.items()
                    ),
                )
                for special in summary.special
            ],
            frozenset({2}),
        )
    )
    if summary.measured:
        show_table(
            Table(
                "Error on held-out tokens",
                ("checkpoint", "table", "rule", "error", "zero", "mean", "cosine"),
                [_error_row(one) for one in summary.measured],
                frozenset({3, 4, 5, 6}),
            )
        )
        for one in summary.measured:
            if one.held_out is None:
                show_line(f"{one.rule} on {one.tensor} of {one.checkpoint}: {one.problem}")
    show_line(f"Chat template: {summary.template}.")


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


def _error_row(one: Measured) -> tuple[str, ...]:
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
