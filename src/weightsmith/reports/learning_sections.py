"""What a report shows of a run of learning: losses by step, and the numbers by model and over depth."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from weightsmith.errors import UsageError
from weightsmith.evaluation import read_saved
from weightsmith.reports.figures import ColourScale, Grid, Point, plane
from weightsmith.reports.layer_maps import map_pictures
from weightsmith.reports.page import (
    Block,
    DataTable,
    Facts,
    PageSection,
    Paragraph,
    Picture,
    TextListing,
)
from weightsmith.reports.report_text import number
from weightsmith.wording import fault

_MODEL = re.compile(r"\bmodels\[(\d+)\]")
_MOST_ROWS = 200
_CHECKED = "The sum of the losses of all tasks on the validation data."
_GAP = "How much the loss could fall at most within the hull, if it were linear."
# Points of a line; more would lie on each other.
_MOST_POINTS = 200


def read_learning(file: Path) -> Mapping[str, Any]:
    """The log that `learn` wrote; raises UsageError for another file."""
    content = read_saved(file, "learning")
    if not isinstance(content.get("log"), list):
        raise UsageError(
            f"{str(file)!r} is no log of learning; give what `learn` wrote beside its recipe."
        )
    return content


def learning_sections(content: Mapping[str, Any]) -> list[PageSection]:
    """The sections of a log in the form of its JSON; raises UsageError if it has another form."""
    try:
        return [PageSection("Learning", tuple(_blocks(content)))]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as problem:
        raise UsageError(
            f"This is no log of learning ({fault(problem)}); give what `learn` wrote beside its recipe."
        ) from problem


def _blocks(content: Mapping[str, Any]) -> list[Block]:
    settings, log = content["settings"], content["log"]
    data = ", ".join(str(part["data"]) for part in content["data"])
    chosen = ", ".join(str(part["data"]) for part in content["validation"])
    facts = (
        ("objective", str(settings["objective"])),
        ("optimizer", str(settings["optimizer"]["name"])),
        ("learned from", data),
        *([("chosen on", chosen)] if chosen else []),
        ("ended", str(content["stopped"])),
        ("numbers after step", str(content["kept"])),
    )
    experts = _experts(content)
    return [
        Facts(facts),
        *_losses(log),
        *_maps(content, experts),
        *_table(content, experts),
        TextListing("Settings", "\n".join(_lines(settings))),
    ]


def _lines(settings: Mapping[str, Any], before: str = "") -> list[str]:
    found = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found += _lines(value, f"{key}.")
        else:
            found.append(f"{before}{key}: {value}")
    return found


def _experts(content: Mapping[str, Any]) -> list[str]:
    models = content["from"].get("models", [])
    return [Path(str(entry["model"])).name for entry in models]


def _losses(log: Sequence[Mapping[str, Any]]) -> list[Block]:
    steps = _thinned([entry for entry in log if "loss" in entry])
    points = [
        Point(float(entry["step"]), float(loss), series=task, path=task)
        for entry in steps
        for task, loss in entry["tasks"].items()
    ]
    text = "The loss of each task on the items of a step."
    return [
        *_line("learning-losses", "Losses", text, points, "loss"),
        *_line("learning-validation", "On the validation data", _CHECKED, _checked(log), "loss"),
        *_line("learning-gap", "Duality gap", _GAP, _gaps(log), "gap"),
    ]


def _checked(log: Sequence[Mapping[str, Any]]) -> list[Point]:
    entries = _thinned([entry for entry in log if "validation" in entry])
    return [Point(float(e["step"]), float(e["validation"]), path="sum") for e in entries]


def _gaps(log: Sequence[Mapping[str, Any]]) -> list[Point]:
    entries = _thinned([entry for entry in log if "gap" in entry])
    return [Point(float(entry["step"]), float(entry["gap"]), path="gap") for entry in entries]


def _line(key: str, title: str, text: str, points: Sequence[Point], axis: str) -> list[Block]:
    return [Picture(key, title, text, plane(points, "step", axis))] if points else []


def _thinned(entries: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    step = -(-len(entries) // _MOST_POINTS) or 1
    return entries[::step]


def _maps(content: Mapping[str, Any], experts: Sequence[str]) -> list[Block]:
    """The mean of the numbers of each model in each layer."""
    cells: dict[tuple[int | None, int], list[float]] = {}
    for name, value in content["values"].items():
        found = _MODEL.search(name)
        if found is not None and name in content["layers"]:
            cells.setdefault((content["layers"][name], int(found[1])), []).append(float(value))
    layers = sorted({layer for layer, _ in cells}, key=lambda n: (n is None, n or 0))
    if len(layers) < 2:
        return []
    values = [[cells.get((layer, k)) for k in range(len(experts))] for layer in layers]
    means = [[None if own is None else fmean(own) for own in row] for row in values]
    is_signed = any(v is not None and v < 0 for row in means for v in row)
    grid = Grid(
        tuple("outside" if layer is None else str(layer) for layer in layers),
        tuple(experts),
        tuple(map(tuple, means)),
        ColourScale.COSINE if is_signed else ColourScale.SIZE,
        "layer",
    )
    text = "The mean of what was learned for the tensors of a layer, for each model."
    return list(map_pictures("learning-map", "Numbers over depth", text, grid))


def _table(content: Mapping[str, Any], experts: Sequence[str]) -> list[Block]:
    values = content["values"]
    rows = tuple((name, number(float(value))) for name, value in list(values.items())[:_MOST_ROWS])
    more = len(values) - len(rows)
    legend = "; ".join(f"models[{k}] is {name}" for k, name in enumerate(experts))
    return [
        Paragraph(legend + ".") if legend else Paragraph("The numbers of the recipe."),
        DataTable("The numbers", ("number", "value"), rows, frozenset({1})),
        *([Paragraph(f"{more:,} more are in the log.")] if more else []),
    ]
