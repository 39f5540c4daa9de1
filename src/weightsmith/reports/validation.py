"""What the validation study says of each diagnostic, as a report tells it."""

from __future__ import annotations

from weightsmith.comparison import VALIDITY, diagnostics_of
from weightsmith.inspection import Changes
from weightsmith.reports.page import DataTable
from weightsmith.reports.report_text import ABSENT, number


def caution_about(diagnostic: str) -> str:
    """A sentence for a diagnostic that does not predict what merging loses; empty for one that does."""
    found = VALIDITY.get(diagnostic)
    if found is None:
        return "No study says that this predicts what a merge loses."
    if found.predicts:
        return ""
    return (
        "This does not predict what a merge loses: its rank correlation with the measured drop, in this tool's study, "
        f"was {number(found.correlation, 2)}, with the 95 % interval {number(found.low, 2)} to {number(found.high, 2)}."
    )


def diagnostics_table(total: Changes, overlap: float | None) -> DataTable:
    """Every diagnostic of all tensors together, and what the study says of it."""
    values = {**diagnostics_of(total), "subspace_overlap": overlap}
    return DataTable(
        "Diagnostics over all tensors, and whether they predict what a merge loses",
        ("diagnostic", "value", "rank correlation", "95 % interval", "predicts"),
        tuple((name, number(value), *_validity(name)) for name, value in values.items()),
        frozenset({1, 2, 3}),
    )


def _validity(name: str) -> tuple[str, str, str]:
    found = VALIDITY.get(name)
    if found is None:
        return ABSENT, ABSENT, "not studied"
    interval = f"{number(found.low, 2)} to {number(found.high, 2)}"
    return number(found.correlation, 2), interval, "yes" if found.predicts else "no"
