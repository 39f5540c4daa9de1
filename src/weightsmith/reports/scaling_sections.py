"""What a report shows of a scaling study: for each family, how the score falls with the number of experts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from weightsmith.reports.figures import Point, plane
from weightsmith.reports.page import Block, DataTable, PageSection, Paragraph, Picture
from weightsmith.reports.report_text import written

_INTRO = (
    "Each method merges the first experts of a family, in the family's order, with the scale that scores best on the "
    "validation split. The normalised score is the mean over these experts' tasks of merged over expert."
)
_STOPPED = "The study was interrupted before all numbers of experts were measured."


def is_scaling(content: Mapping[str, Any]) -> bool:
    """Whether this is a scaling study and not a league, both in the form of their JSON."""
    return isinstance(content.get("leagues"), list)


def scaling_sections(study: Mapping[str, Any]) -> list[PageSection]:
    """The sections of a scaling study in the form of its JSON; raises KeyError or TypeError for another form."""
    rows = list(study["rows"])
    families: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        families.setdefault(str(row["family"]), []).append(row)
    stopped = [] if study["ended"] == "finished" else [Paragraph(_STOPPED, caution=True)]
    pictures = [_picture(family, own) for family, own in families.items()]
    blocks: tuple[Block, ...] = (Paragraph(_INTRO), *stopped, *pictures, _table(rows))
    return [PageSection("Scaling", blocks)]


def _picture(family: str, rows: Sequence[Mapping[str, Any]]) -> Picture:
    scored = [row for row in rows if row["normalized"] is not None]
    return Picture(
        f"scaling-{family}",
        f"Normalised score by number of experts: {family}",
        f"A model of {int(rows[0]['parameters']):,} parameters; a line for each method, with 95 % intervals.",
        plane([_point(row) for row in scored], "experts", "normalised score"),
    )


def _point(row: Mapping[str, Any]) -> Point:
    estimate, method = row["normalized"], str(row["method"])
    return Point(
        float(row["experts"]),
        float(estimate["value"]),
        series=method,
        path=method,
        y_interval=(float(estimate["low"]), float(estimate["high"])),
    )


def _table(rows: Sequence[Mapping[str, Any]]) -> DataTable:
    return DataTable(
        "Scaling study; 95 % intervals in brackets",
        ("method", "family", "parameters", "experts", "normalised", "retained", "unseen"),
        tuple(
            (
                str(row["method"]),
                str(row["family"]),
                f"{int(row['parameters']):,}",
                str(row["experts"]),
                *(written(row[key]) for key in ("normalized", "retained", "unseen")),
            )
            for row in rows
        ),
        frozenset(range(2, 7)),
    )
