"""`weightsmith seams`: how rough the joints between stacked layers are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from weightsmith.cli.documented import DocumentedCommand
from weightsmith.cli.options import json_option, threads_option
from weightsmith.cli.presenting import Block, TextTable, present

if TYPE_CHECKING:
    from weightsmith.inspection import BoundaryMeasures, BoundaryReport, LayerChange
    from weightsmith.recipes import LayerOrigin

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
    examples=(
        "seams depth-upscale.yaml",
        "seams merged --json",
    ),
)
@click.argument("source")
@threads_option
@json_option
def seams(source: str, threads: int | None, as_json: bool) -> int:
    """Show where layers of SOURCE, a recipe or a checkpoint, do not follow each other as they did in their source.

    For each boundary two lines: the layer to the right, compared with the one that used to follow the layer to the
    left; and the layer to the left, compared with the one that used to come before. `norms`, `reads` and `writes`
    are relative differences of the weights of normalisation, of what reads the residual stream and of what writes
    into it, |writes| the ratio of norms of the latter. `written` says how much more has been written into the
    stream before the right layer than in its source. Of a checkpoint, runs of layers that repeat earlier ones byte
    for byte are found. Only layers beside boundaries, and what writes before them, are read of a recipe's sources.
    """
    present(_report(source, threads), _blocks, as_json=as_json)
    return 0


def _report(source: str, threads: int | None) -> BoundaryReport:
    from weightsmith.adapters import open_model
    from weightsmith.engine import make_plan
    from weightsmith.inspection import boundaries_of_checkpoint, boundaries_of_plan
    from weightsmith.recipes import Recipe, is_recipe_file

    if is_recipe_file(source):
        return boundaries_of_plan(make_plan(Recipe.load(source)), threads=threads)
    return boundaries_of_checkpoint(open_model(source), threads=threads)


def _blocks(report: BoundaryReport) -> Iterator[Block]:
    for stack, layers in report.origins.items():
        yield f"{stack}: {len(layers)} layers, {len(report.repeated[stack])} used more than once"
    yield f"{report.parameters:,} parameters in all"
    yield ""
    rows = [row for found in report.boundaries for row in _rows(found)]
    if rows:
        yield TextTable("Layer boundaries", _COLUMNS, rows, frozenset(range(4, len(_COLUMNS))))
    else:
        yield "No boundaries: all layers follow each other as in their source."


def _rows(found: BoundaryMeasures) -> list[tuple[str, ...]]:
    boundary = found.boundary
    head = (f"{boundary.stack}.{boundary.after}", _name(boundary.left), _name(boundary.right))
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
