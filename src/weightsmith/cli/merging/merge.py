"""`weightsmith merge`: make a checkpoint from a recipe."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weightsmith.cli.documented import DocumentedCommand
from weightsmith.cli.interruption import interruptible
from weightsmith.cli.judging.report import check_place, write_beside
from weightsmith.cli.merging.plan import planned
from weightsmith.cli.options import (
    RunOptions,
    overrides_option,
    report_option,
    run_options,
    size,
    values_option,
)
from weightsmith.cli.presenting import show_findings
from weightsmith.cli.progress_lines import open_progress
from weightsmith.cli.written import Written, show_written
from weightsmith.errors import UsageError
from weightsmith.findings import Finding, Severity
from weightsmith.progress import Progress

if TYPE_CHECKING:
    from weightsmith.engine import Manifest, Plan
    from weightsmith.reports import Report

_MOST_LOSSES = 5


@click.command(
    cls=DocumentedCommand,
    examples=(
        "merge ties.yaml merged",
        "merge ties.yaml merged --memory 1GiB --threads 8",
        "merge free.yaml merged --values found.yaml",
    ),
)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@overrides_option
@values_option
@run_options
@click.option("--shard-size", type=size, help="Largest size of a weights file, such as 5GB.")
@click.option("--ray", metavar="ADDRESS|auto", help="Compute on a Ray cluster with shared storage.")
@report_option
def merge(
    recipe: Path,
    out: Path,
    overrides: tuple[str, ...],
    values: str | None,
    shard_size: int | None,
    ray: str | None,
    report_file: Path | None,
    **run: Any,
) -> int:
    """Make the checkpoint that RECIPE describes in the new folder OUT.

    OUT appears whole or not at all. An interrupted merge goes on where it was when the same command is
    given again. The last line says where the result is, its digest, and how long it took.
    """
    begun = time.monotonic()
    how = RunOptions(**run)
    with interruptible(out):
        made = planned(recipe, overrides, how, shard_size=shard_size, values=values)
        _check_report(report_file, out, made)
        if not how.quiet and not made.errors:
            show_findings(made.findings, to_stderr=True)
        with open_progress(how.quiet) as progress:
            manifest = _run(made, out, ray, how, progress)
    lost = losses(manifest)
    if not how.quiet:
        show_findings(lost, to_stderr=True)
    found = (*made.findings, *lost)
    # The result is there before the report is, which may still fail.
    show_written(Written(out, manifest, time.monotonic() - begun, found), as_json=how.as_json)
    write_beside(report_file, lambda: _report(made, manifest, out), (*made.inputs, out))
    return 0


def _check_report(file: Path | None, out: Path, made: Plan) -> None:
    if file is None:
        return
    if Path(os.path.realpath(out)) in Path(os.path.realpath(file)).parents:
        raise UsageError(
            f"The report {str(file)!r} lies in the output, whose record names all that is in it; choose a place "
            "outside "
            "of it."
        )
    check_place(file, (*made.inputs, out))


def losses(manifest: Manifest) -> list[Finding]:
    """Notes about the changes of an adapter that were cut: those that lost most, and how many there are."""
    ranked = sorted(manifest.lost.items(), key=lambda item: (-item[1], item[0]))
    found = [
        Finding(
            Severity.NOTE, "cut", name, f"{name}: {share:.2%} of the norm of its change was cut"
        )
        for name, share in ranked[:_MOST_LOSSES]
    ]
    if len(ranked) > _MOST_LOSSES:
        more = f"{len(ranked) - _MOST_LOSSES} more changes were cut, each by less; the manifest has all of them"
        found.append(Finding(Severity.NOTE, "cut", "adapter", more))
    return found


def _run(made: Plan, out: Path, ray: str | None, how: RunOptions, progress: Progress) -> Manifest:
    replacing: dict[str, Any] = {"force": how.force, "fresh": how.fresh}
    if ray is None:
        from weightsmith.engine import run

        return run(made, out, progress=progress, **replacing)
    from weightsmith.engine import run_on_ray

    return run_on_ray(made, out, address=ray, progress=progress, **replacing)


def _report(made: Plan, manifest: Manifest, out: Path) -> Report:
    from weightsmith.reports import report_of_merge

    return report_of_merge(made, manifest, out)
