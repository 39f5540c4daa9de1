"""`weightsmith merge`: make a checkpoint from a recipe."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weightsmith.cli.documented import DocumentedCommand
from weightsmith.cli.interruption import interruptible
from weightsmith.cli.options import (
    Machine,
    machine_options,
    output_options,
    overrides_option,
    quiet_option,
    report_option,
    size,
)
from weightsmith.cli.output import show_findings, show_line
from weightsmith.cli.plan import planned, show_plan
from weightsmith.cli.progress import Quiet, open_progress
from weightsmith.cli.report import check_place, write_beside
from weightsmith.cli.streams import STREAMS
from weightsmith.cli.text import duration
from weightsmith.errors import UsageError
from weightsmith.findings import Finding, Severity

if TYPE_CHECKING:
    from weightsmith.engine.manifest import Manifest
    from weightsmith.engine.plan import Plan
    from weightsmith.recipes import Recipe
    from weightsmith.reports.page import Report

_MOST_LOSSES = 5


@click.command(
    cls=DocumentedCommand,
    short_help="Make a checkpoint from a recipe.",
    examples=(
        "merge ties.yaml merged",
        "merge ties.yaml merged --memory 1GiB --threads 8",
    ),
)
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@overrides_option
@machine_options
@output_options
@click.option("--shard-size", type=size, help="Largest size of a weights file, such as 5GB.")
@click.option("--ray", metavar="ADDRESS|auto", help="Compute on a Ray cluster with shared storage.")
@report_option
@quiet_option
def merge(
    recipe: Path,
    out: Path,
    overrides: tuple[str, ...],
    force: bool,
    fresh: bool,
    shard_size: int | None,
    ray: str | None,
    report_file: Path | None,
    quiet: bool,
    **machine: Any,
) -> int:
    """Make the checkpoint that RECIPE describes in the new folder OUT.

    OUT appears whole or not at all. An interrupted merge goes on where it was when the same command is
    given again. The last line says where the result is, its digest, and how long it took.
    """
    begun = time.monotonic()
    with interruptible(out):
        made = planned(recipe, overrides, Machine(**machine), shard_size=shard_size)
        _check_report(report_file, out, made)
        if not quiet and not made.errors:
            show_findings(made.findings, to_stderr=True)
        with open_progress(quiet) as progress:
            manifest = _run(made, out, ray, force, fresh, progress)
    if not quiet:
        show_findings(losses(manifest), to_stderr=True)
    # The result is there before the report is, which may still fail.
    show_result(out, manifest.digest, time.monotonic() - begun)
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


def _run(
    made: Plan, out: Path, ray: str | None, force: bool, fresh: bool, progress: Quiet
) -> Manifest:
    if ray is None:
        from weightsmith.engine.run import run

        return run(made, out, force=force, fresh=fresh, progress=progress)
    from weightsmith.engine.ray_cluster import run_on_ray

    return run_on_ray(made, out, address=ray, force=force, fresh=fresh, progress=progress)


def _report(made: Plan, manifest: Manifest, out: Path) -> Report:
    from weightsmith.reports.subjects import report_of_merge

    return report_of_merge(made, manifest, out)


def run_recipe(
    recipe: Recipe,
    out: Path,
    machine: Machine,
    begun: float,
    *,
    only_recipe: bool,
    dry_run: bool,
    force: bool,
    fresh: bool,
    quiet: bool,
) -> int:
    """Merge by a recipe that a command has made: show it with --recipe, or its plan with --dry-run, else run it."""
    from weightsmith.engine.plan import make_plan

    if only_recipe:
        for line in recipe.dump().splitlines():
            show_line(line)
        return 0
    made = make_plan(recipe, **machine.options())
    if dry_run:
        return show_plan(made)
    return run_plan(made, out, begun, force=force, fresh=fresh, quiet=quiet)


def run_plan(made: Plan, out: Path, begun: float, *, force: bool, fresh: bool, quiet: bool) -> int:
    """Run a plan into `out`, its notes before and one line on the result behind; `begun` is when the command did."""
    from weightsmith.engine.run import run

    with interruptible(out):
        if not quiet and not made.errors:
            show_findings(made.findings, to_stderr=True)
        with open_progress(quiet) as progress:
            manifest = run(made, out, force=force, fresh=fresh, progress=progress)
    show_result(out, manifest.digest, time.monotonic() - begun)
    return 0


def show_result(out: Path, digest: str, seconds: float) -> None:
    """The last line: where, which digest, how long; the result is there."""
    STREAMS.done()
    show_line(f"{out}  {digest}  {duration(seconds)}")
