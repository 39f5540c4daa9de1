"""`weightsmith rollback`: take a contributor out of a merge again."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from weightsmith.cli.documented import DocumentedCommand
from weightsmith.cli.interruption import interruptible
from weightsmith.cli.options import (
    Machine,
    by_reference,
    inputs_option,
    json_option,
    machine_options,
    quiet_option,
)
from weightsmith.cli.presenting import show_line
from weightsmith.cli.progress_lines import open_progress
from weightsmith.cli.standard_streams import STREAMS
from weightsmith.cli.written import Written, show_written

if TYPE_CHECKING:
    from weightsmith.engine import RolledBack


@click.command(
    cls=DocumentedCommand,
    examples=(
        "rollback merged without-law --without expert-law",
        "rollback merged without-law --without expert-law --by subtraction",
    ),
)
@click.argument("merged", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option(
    "--without",
    "contributor",
    required=True,
    metavar="CONTRIBUTOR",
    help="The model to take out, as the manifest has it, or the last part of that.",
)
@click.option(
    "--by",
    type=click.Choice(("replay", "subtraction")),
    help="Merge the others afresh, or subtract from MERGED; default: replay where all inputs are found.",
)
@inputs_option
@machine_options
@json_option
@quiet_option
def rollback(
    merged: Path,
    new: Path,
    contributor: str,
    by: str | None,
    inputs: tuple[tuple[str, Path], ...],
    quiet: bool,
    as_json: bool,
    **machine: Any,
) -> int:
    """Make in NEW what MERGED would have been without one of its models.

    By replay the bits are those of a merge that never had it. By subtraction only MERGED, the model and sometimes the
    base are needed; the merge must be linear, and the last lines say how far from a fresh merge the result may be.
    Inputs are looked for where they lay, seen from MERGED; --input says where one lies now.
    """
    begun = time.monotonic()
    from weightsmith.engine import Way
    from weightsmith.engine import roll_back as roll_back

    with interruptible(new), open_progress(quiet) as progress:
        options = Machine(**machine).options()
        made = roll_back(
            merged,
            new,
            contributor,
            by=None if by is None else Way(by),
            inputs=by_reference(inputs),
            progress=progress,
            **options,
        )
    STREAMS.done()
    if not (quiet or as_json):
        for line in _notes(made):
            show_line(line)
    done = Written(new, made.manifest, time.monotonic() - begun, more=made.to_mapping())
    show_written(done, as_json=as_json)
    return 0


def _notes(made: RolledBack) -> list[str]:
    if not made.bounds:
        return [
            f"merged afresh without {made.contributor!r}: the bits are those of a merge that never had it"
        ]
    lines = [f"{made.contributor!r} was subtracted"]
    if made.gone:
        lines[0] += f", because {', '.join(map(repr, made.gone))} is gone"
    bound = made.worst
    lines.append(
        f"each number is that of a fresh merge to within {bound.merged:.2g} of its size in MERGED, "
        f"{bound.result:.2g} of its own and {bound.inputs:.2g} of the largest input's"
    )
    if made.was_config_source:
        lines.append(
            f"config and tokenizer are still those of {made.contributor!r}, which MERGED has"
        )
    return lines
