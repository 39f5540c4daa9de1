"""`weightsmith seams`: how rough the joints between stacked layers are."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from weightsmith.cli.documented import DocumentedCommand
from weightsmith.cli.options import json_option
from weightsmith.cli.output import Table, show_json, show_line, show_table

if TYPE_CHECKING:
    from weightsmith.inspection.seams import LayerChange, SeamMeasures, SeamReport
    from weightsmith.recipes.seams import LayerOrigin

_COLUMNS = (
    "after layer",
    "left",
    "right",
    "instead of",
    "norms",
    "reads",
    "writes",
    "|writes|",
    "written",
)


@click.command(
    cls=DocumentedCommand,
    short_help="Measure the seams between stacked layers.",
    examples=(
        "seams depth-upscale.yaml",
        "seams merged --json",
    ),
)
@click.argument("source")
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=None,
    help="Worker threads; default: all cores.",
)
@json_option
def seams(source: str, threads: int | None, as_json: bool) -> int:
    """Show where layers of SOURCE, a recipe or a checkpoint, do not follow each other as they did in their source.

    For each seam two lines: the layer to the right, compared with the one that used to follow the layer to the
    left; and the layer to the left, compared with the one that used to come before. `norms`, `reads` and `writes`
    are relative differences of the weights of normalisation, of what reads the residual stream and of what writes
    into it, |writes| the ratio of norms of the latter. `written` says how much more has been written into the
    stream before the right layer than in its source. Of a checkpoint, runs of layers that repeat earlier ones byte
    for byte are found. Only layers beside seams, and what writes before them, are read of a recipe's sources.
    """
    report = _report(source, threads)
    if as_json:
        show_json(_as_json(report))
    else:
        _show(report)
    return 0


def _report(source: str, threads: int | None) -> SeamReport:
    from pathlib import Path

    from weightsmith.adapters.opening import open_model
    from weightsmith.engine.plan import make_plan
    from weightsmith.inspection.seams import seams_of_checkpoint, seams_of_plan
    from weightsmith.recipes import Recipe

    if Path(source).suffix in (".yaml", ".yml"):
        return seams_of_plan(make_plan(Recipe.load(Path(source))), threads=threads)
    return seams_of_checkpoint(open_model(source), threads=threads)


def _show(report: SeamReport) -> None:
    for stack, layers in report.origins.items():
        show_line(
            f"{stack}: {len(layers)} layers, {len(report.repeated[stack])} used more than once"
        )
    show_line(f"{report.parameters:,} parameters in all")
    show_line()
    rows = [row for found in report.seams for row in _rows(found)]
    if rows:
        show_table(Table("Seams", _COLUMNS, rows, frozenset(range(4, len(_COLUMNS)))))
    else:
        show_line("No seams: all layers follow each other as in their source.")


def _rows(found: SeamMeasures) -> list[tuple[str, ...]]:
    seam = found.seam
    head = (f"{seam.stack}.{seam.after}", _name(seam.left), _name(seam.right))
    right = (*head, *_change(found.successor), _number(found.written))
    return [right, ("", "", "", *_change(found.predecessor), "")]


def _change(change: LayerChange | None) -> tuple[str, ...]:
    if change is None:
        return ("nothing", "-", "-", "-", "-")
    numbers = (change.norms, change.reads, change.writes, change.write_ratio)
    return (_name(change.compared_with), *(_number(n) for n in numbers))


def _name(origin: LayerOrigin) -> str:
    return f"{origin.checkpoint}: {origin.layer}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _as_json(report: SeamReport) -> dict[str, Any]:
    return {
        "schema": 1,
        "parameters": report.parameters,
        "stacks": [
            {
                "stack": stack,
                "layers": [_origin(origin) for origin in layers],
                "repeated": [_origin(origin) for origin in report.repeated[stack]],
            }
            for stack, layers in report.origins.items()
        ],
        "seams": [
            {
                "stack": found.seam.stack,
                "after": found.seam.after,
                "left": _origin(found.seam.left),
                "right": _origin(found.seam.right),
                "successor": _plain(found.successor),
                "predecessor": _plain(found.predecessor),
                "written": found.written,
            }
            for found in report.seams
        ],
    }


def _origin(origin: LayerOrigin) -> dict[str, Any]:
    return {"checkpoint": origin.checkpoint, "stack": origin.stack, "layer": origin.layer}


def _plain(change: LayerChange | None) -> dict[str, Any] | None:
    if change is None:
        return None
    return {
        "instead_of": _origin(change.compared_with),
        "norms": change.norms,
        "reads": change.reads,
        "writes": change.writes,
        "write_ratio": change.write_ratio,
    }
