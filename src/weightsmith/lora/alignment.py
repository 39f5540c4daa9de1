"""Adapters of one base side by side: which tensors each of them changes by factors."""

from __future__ import annotations

from collections.abc import Sequence

from weightsmith.errors import CompatibilityError, UsageError
from weightsmith.findings import Finding, Severity
from weightsmith.lora.low_rank_adapters import Factors, LowRankAdapter
from weightsmith.tensors import shown

# By key, the factors of each adapter, None for one that leaves the tensor alone.
Rows = dict[str, list[Factors | None]]


def aligned(adapters: Sequence[LowRankAdapter], labels: Sequence[str]) -> Rows:
    """Every tensor that any of the adapters changes, in the order of the adapters, with each one's factors.

    Raises CompatibilityError where two adapters see one tensor in different shapes or orientations.
    """
    rows: Rows = {}
    for i, adapter in enumerate(adapters):
        for key, factors in adapter.factors.items():
            rows.setdefault(key, [None] * len(adapters))[i] = factors
    whole: dict[str, bool] = {}
    for row in rows.values():
        _check_alike(row, labels)
        found = next(f for f in row if f is not None)
        if whole.setdefault(found.target, found.part is None) is not (found.part is None):
            raise CompatibilityError(
                f"{shown(found.target)} is changed expert by expert in one adapter and as one matrix in another; "
                "convert one of them first."
            )
    return rows


def absences(rows: Rows, labels: Sequence[str]) -> list[Finding]:
    """A note for each adapter that leaves tensors alone which others change."""
    found = []
    for i, label in enumerate(labels):
        missing = [key for key, row in rows.items() if row[i] is None]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            found.append(
                Finding(
                    Severity.NOTE,
                    "absent-change",
                    label,
                    f"{label} does not change {shown(missing[0])}{more}, which others do: its change there counts as 0",
                )
            )
    return found


def labels_of(adapters: Sequence[LowRankAdapter], labels: Sequence[str]) -> list[str]:
    """Names for messages: those given, or `adapter 1`, `adapter 2`..."""
    if not adapters:
        raise UsageError("There are no adapters to combine; give at least one.")
    if labels and len(labels) != len(adapters):
        raise UsageError(f"{len(labels)} labels do not name {len(adapters)} adapters.")
    return list(labels) or [f"adapter {i + 1}" for i in range(len(adapters))]


def _check_alike(row: Sequence[Factors | None], labels: Sequence[str]) -> None:
    present = [(f, label) for f, label in zip(row, labels, strict=True) if f is not None]
    first, first_label = present[0]
    for factors, label in present[1:]:
        seen = (factors.change.shape, factors.input_first)
        if seen != (first.change.shape, first.input_first):
            raise CompatibilityError(
                f"{shown(first.key)} is changed by {_size(first)} in {first_label} and {_size(factors)} in {label}: "
                "they are adapters of different bases."
            )


def _size(factors: Factors) -> str:
    rows, columns = factors.change.shape
    return f"{rows} x {columns}{', inputs first,' if factors.input_first else ''}"
