"""`weightsmith diff`: how two checkpoints differ, per layer and role."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from weightsmith.cli.documented import DocumentedCommand
from weightsmith.cli.input_paths import places_read
from weightsmith.cli.judging.report import check_place, write_beside
from weightsmith.cli.options import json_option, report_option, threads_option
from weightsmith.cli.presenting import Block, TextTable, present
from weightsmith.cli.terminal_text import counted

if TYPE_CHECKING:
    from weightsmith.inspection import CheckpointDifference, Measures
    from weightsmith.reports import Report

_COLUMNS = ("place", "role", "tensors", "|B-A|/|A|", "cosine", "changed", "max |B-A|")
# What a narrow terminal does without: the largest difference first, then the numbers of tensors.
_SPARE = (6, 2, 4, 5)
_BASE_COLUMNS = ("|A-C|/|C|", "|B-C|/|C|", "cosine of A-C, B-C")


@click.command(
    cls=DocumentedCommand,
    examples=(
        "diff base expert",
        "diff expert-1 expert-2 --base base --json",
    ),
)
@click.argument("a")
@click.argument("b")
@click.option("--base", help="Also compare what A and B each changed of this checkpoint.")
@threads_option
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
    from weightsmith.inspection import compare_checkpoints

    reads = () if report_file is None else places_read(a, b, base)
    check_place(report_file, reads)
    found = compare_checkpoints(a, b, base=base, threads=threads)
    write_beside(report_file, lambda: _report(found), reads)
    present(found, _blocks, as_json=as_json)
    return 0 if found.identical else 1


def _report(found: CheckpointDifference) -> Report:
    from weightsmith.reports import report_of_difference

    return report_of_difference(found)


def _blocks(found: CheckpointDifference) -> Iterator[Block]:
    with_base = found.base is not None
    columns = _COLUMNS + (_BASE_COLUMNS if with_base else ())
    rows = [_row(_place(g.block, g.layer), g.role, g.measures, with_base) for g in found.groups]
    rows.append(_row("all", "", found.total, with_base))
    title = f"A = {found.a}, B = {found.b}" + (f", C = {found.base}" if with_base else "")
    yield TextTable(title, columns, rows, frozenset(range(2, len(columns))), spare=_SPARE)
    for title, names in (
        ("Only in A", found.missing),
        ("Only in B", found.extra),
        ("Not comparable with the base", found.not_in_base),
    ):
        if names:
            yield TextTable(title, ("tensor",), [(name,) for name in names])
    for title, mismatches in (
        ("Named otherwise", found.names),
        ("Different shapes", found.shapes),
        ("Different dtypes", found.dtypes),
    ):
        if mismatches:
            yield TextTable(title, ("tensor", "A", "B"), [(m.name, m.a, m.b) for m in mismatches])
    if found.identical:
        yield f"Identical: {counted(found.total.tensors, 'tensor')}, every byte."
    else:
        share = f"{found.total.changed:,} of {found.total.elements:,} values"
        yield f"Different: {share} in {counted(found.total.other_bits, 'tensor')}."


def _place(block: str | None, layer: int | None) -> str:
    if layer is None:
        return "outside layers"
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
