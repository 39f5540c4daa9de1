"""What a report shows of a league: methods by their scores, and quality against cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weightsmith.errors import UsageError
from weightsmith.evaluation import read_saved
from weightsmith.reports.figures import IntervalBar, Point, estimates, plane
from weightsmith.reports.page import Block, DataTable, PageSection, Paragraph, Picture
from weightsmith.reports.report_text import ABSENT, number, written
from weightsmith.reports.scaling_sections import is_scaling, scaling_sections
from weightsmith.tensors import format_size
from weightsmith.wording import fault

_SETTINGS = ("tuned", "default", "average", "base")
_NOT_FINISHED = {
    "budget": "The budget was spent before all methods were measured.",
    "interrupted": "The league was interrupted before all methods were measured.",
}

_COLUMNS = (
    "method",
    "setting",
    "parameters",
    "rank",
    "normalised",
    "retained",
    "mean",
    "general",
    "unseen",
    "CPU s",
    "memory",
)
_WORDS = frozenset({"method", "setting", "parameters"})


def read_league(file: Path) -> Mapping[str, Any]:
    """What `league --json` wrote; raises UsageError for another file."""
    content = read_saved(file, "league")
    if not isinstance(content.get("rows"), list):
        raise UsageError(f"{str(file)!r} holds no league; give what `league --json` wrote.")
    return content


def league_sections(league: Mapping[str, Any]) -> list[PageSection]:
    """The sections of a league or a scaling study in the form of its JSON; raises UsageError if it has another form."""
    try:
        return scaling_sections(league) if is_scaling(league) else _sections(league)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as problem:
        raise UsageError(
            f"This is not a league ({fault(problem)}); give what `league --json` wrote."
        ) from problem


def _sections(league: Mapping[str, Any]) -> list[PageSection]:
    rows = list(league["rows"])
    ended = _NOT_FINISHED.get(str(league.get("ended", "")))
    intro = (
        f"Family {league['family']}, split {league['split']}; experts: {', '.join(league['experts'])}. "
        "The normalised score is the mean over the experts' tasks of merged over expert. A tuned scale is the one that "
        "scores best on the validation split."
    )
    blocks: tuple[Block, ...] = (
        Paragraph(intro),
        *([Paragraph(ended, caution=True)] if ended else []),
        *_pictures(rows),
        _table(rows),
    )
    left_out = league.get("left_out") or []
    sections = [PageSection("League", blocks)]
    if left_out:
        table = DataTable(
            "Methods that did not take part",
            ("method", "why"),
            tuple((str(out["method"]), str(out["reason"])) for out in left_out),
        )
        sections.append(PageSection("Left out", (table,)))
    return sections


def _pictures(rows: Sequence[Mapping[str, Any]]) -> list[Picture]:
    scored = [row for row in rows if row["normalized"] is not None and row["setting"] != "experts"]
    best_first = sorted(scored, key=lambda row: -float(row["normalized"]["value"]))
    order = {str(row["name"]): position for position, row in reversed(list(enumerate(best_first)))}
    grouped = sorted(best_first, key=lambda row: order[str(row["name"])])
    pictures = []
    if grouped:
        pictures.append(
            Picture(
                "league-quality",
                "Normalised score by method",
                "The best first, with 95 % intervals; the dashed line is the experts, each on its own task.",
                estimates(
                    [_bar(row) for row in grouped],
                    "normalised score",
                    reference=1.0,
                    order=_SETTINGS,
                ),
            )
        )
    # The axis of seconds is logarithmic, so nothing has a place on it that took none.
    costly = [row for row in scored if row["cost"] and float(row["cost"]["cpu_seconds"]) > 0]
    if costly:
        pictures.append(
            Picture(
                "league-cost",
                "Quality against cost",
                "Normalised score, with its 95 % interval, by the processor time of the merge on one thread.",
                plane(
                    [_point(row) for row in costly],
                    "processor seconds",
                    "normalised score",
                    logarithmic_x=True,
                    order=_SETTINGS,
                ),
            )
        )
    return pictures


def _bar(row: Mapping[str, Any]) -> IntervalBar:
    estimate = row["normalized"]
    return IntervalBar(
        str(row["name"]),
        float(estimate["value"]),
        float(estimate["low"]),
        float(estimate["high"]),
        str(row["setting"]),
    )


def _point(row: Mapping[str, Any]) -> Point:
    estimate = row["normalized"]
    return Point(
        float(row["cost"]["cpu_seconds"]),
        float(estimate["value"]),
        str(row["name"]),
        str(row["setting"]),
        y_interval=(float(estimate["low"]), float(estimate["high"])),
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> DataTable:
    """A row for each method and setting; figures that no row has, such as those of unseen tasks, have no column."""
    cells = [_row(row) for row in rows]
    shown = [i for i in range(len(_COLUMNS)) if any(row[i] not in ("", ABSENT) for row in cells)]
    return DataTable(
        "League table; 95 % intervals in brackets",
        tuple(_COLUMNS[i] for i in shown),
        tuple(tuple(row[i] for i in shown) for row in cells),
        frozenset(place for place, i in enumerate(shown) if _COLUMNS[i] not in _WORDS),
    )


def _row(row: Mapping[str, Any]) -> tuple[str, ...]:
    cost = row["cost"]
    given = ", ".join(f"{key}={value}" for key, value in row["parameters"].items())
    return (
        str(row["name"]),
        # Base, experts and average have one setting, which is called as they are.
        str(row["setting"]) if row["setting"] != row["name"] else "",
        given + (" (at the edge of its grid)" if row.get("at_edge") else ""),
        _ranked(row["rank"]),
        *(written(row[key]) for key in ("normalized", "retained", "mean", "general", "unseen")),
        ABSENT if cost is None else number(float(cost["cpu_seconds"]), 2),
        ABSENT if cost is None else format_size(int(cost["peak_bytes"])),
    )


def _ranked(rank: Mapping[str, Any] | None) -> str:
    if rank is None:
        return ABSENT
    value, low, high = (number(float(rank[key])) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
