"""`weightsmith diff`: how two checkpoints differ, per layer and role."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weightsmith.cli.documented import DocumentedCommand
from weightsmith.cli.options import json_option, report_option
from weightsmith.cli.output import Table, show_json, show_line, show_table
from weightsmith.cli.reading import places_read
from weightsmith.cli.report import check_place, write_beside
from weightsmith.cli.text import counted

if TYPE_CHECKING:
    from weightsmith.inspection.difference import Difference
    from weightsmith.inspection.measures import Measures
    from weightsmith.reports.page import Report

_COLUMNS = ("place", "role", "tensors", "|B-A|/|A|", "cosine", "changed", "max |B-A|")
_BASE_COLUMNS = ("|A-C|/|C|", "|B-C|/|C|", "cosine of A-C, B-C")


@click.command(
    cls=DocumentedCommand,
    short_help="Show how two checkpoints differ, per layer and role.",
    examples=(
        "diff base expert",
        "diff expert-1 expert-2 --base base --json",
    ),
)
@click.argument("a")
@click.argument("b")
@click.option("--base", help="Also compare what A and B each changed of this checkpoint.")
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=None,
    help="Worker threads; default: all cores.",
)
@report_option
@json_option
def diff(
    a: str,
    b: str,
    base: str | None,
    threads: int | None,
    report_file: Path | None,
    as_json: bool,
) -> int:
    """Show per layer and role how checkpoint B differs from A.

    |B-A|/|A| is the relative change in Euclidean norm, `changed` the share of values that are not the
    same, and C stands for the base. Tensors are streamed: memory does not depend on the models' size. The
    exit code is 0 if both have the same tensors byte for byte, else 1.
    """
    from weightsmith.inspection.difference import compare_checkpoints

    reads = () if report_file is None else places_read(a, b, base)
    check_place(report_file, reads)
    found = compare_checkpoints(a, b, base=base, threads=threads)
    write_beside(report_file, lambda: _report(found), reads)
    if as_json:
        show_json(_as_json(found))
    else:
        _show(found)
    return 0 if found.identical else 1


def _report(found: Difference) -> Report:
    from weightsmith.reports.subjects import report_of_difference

    return report_of_difference(found)


def _show(found: Difference) -> None:
    with_base = found.base is not None
    columns = _COLUMNS + (_BASE_COLUMNS if with_base else ())
    rows = [_row(_place(g.block, g.layer), g.role, g.measures, with_base) for g in found.groups]
    rows.append(_row("all", "", found.total, with_base))
    show_table(Table(f"{found.a} and {found.b}", columns, rows, frozenset(range(2, len(columns)))))
    for title, names in (
        ("Only in A", found.missing),
        ("Only in B", found.extra),
        ("Not comparable with the base", found.not_in_base),
    ):
        if names:
            show_table(Table(title, ("tensor",), [(name,) for name in names]))
    for title, mismatches in (
        ("Different shapes", found.shapes),
        ("Different dtypes", found.dtypes),
    ):
        if mismatches:
            show_table(Table(title, ("tensor", "A", "B"), [(m.name, m.a, m.b) for m in mismatches]))
    if found.identical:
        show_line(f"Identical: {counted(found.total.tensors, 'tensor')}, every byte.")
    else:
        share = f"{found.total.changed:,} of {found.total.elements:,} values"
        show_line(f"Different: {share} in {counted(found.total.other_bits, 'tensor')}.")


def _place(block: str | None, layer: int | None) -> str:
    if layer is None:
        return "-"
    return f"{block}.{layer}" if block else str(layer)


def _row(place: str, role: str, m: Measures, with_base: bool) -> tuple[str, ...]:
    cells = (
        place,
        role,
        f"{m.tensors:,}",
        f"{m.relative_delta:.3g}",
        _cosine(m.cosine),
        f"{100 * m.changed_share:.1f} %",
        f"{m.largest:.3g}",
    )
    if not with_base:
        return cells
    return (*cells, f"{m.delta_a:.3g}", f"{m.delta_b:.3g}", _cosine(m.delta_cosine))


def _cosine(value: float | None) -> str:
    return "-" if value is None else f"{value:.6f}"


def _as_json(found: Difference) -> dict[str, Any]:
    with_base = found.base is not None
    return {
        "schema": 1,
        "a": str(found.a),
        "b": str(found.b),
        "base": None if found.base is None else str(found.base),
        "identical": found.identical,
        "missing": found.missing,
        "extra": found.extra,
        "shapes": [{"name": m.name, "a": m.a, "b": m.b} for m in found.shapes],
        "dtypes": [{"name": m.name, "a": m.a, "b": m.b} for m in found.dtypes],
        "not_in_base": found.not_in_base,
        "total": _measures(found.total, with_base),
        "groups": [
            {"block": g.block, "layer": g.layer, "role": g.role, **_measures(g.measures, with_base)}
            for g in found.groups
        ],
        "tensors": [
            {
                "name": t.name,
                "block": t.block,
                "layer": t.layer,
                "role": t.role,
                **_measures(t.measures, with_base),
            }
            for t in found.tensors
        ],
    }


def _measures(m: Measures, with_base: bool) -> dict[str, Any]:
    content: dict[str, Any] = {
        "tensors": m.tensors,
        "elements": m.elements,
        "relative_delta": m.relative_delta,
        "cosine": m.cosine,
        "changed": m.changed,
        "changed_share": m.changed_share,
        "largest_delta": m.largest,
        "different_tensors": m.other_bits,
    }
    if with_base:
        content |= {"delta_a": m.delta_a, "delta_b": m.delta_b, "delta_cosine": m.delta_cosine}
    return content
