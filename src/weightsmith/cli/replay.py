"""`weightsmith replay`: make an output again from its manifest, bit for bit."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from weightsmith.cli.documented import DocumentedCommand
from weightsmith.cli.interruption import interruptible
from weightsmith.cli.merge import show_result
from weightsmith.cli.options import Machine, by_reference, inputs_option, machine_options
from weightsmith.cli.progress import open_progress


@click.command(
    cls=DocumentedCommand,
    short_help="Make an output again from its manifest, bit for bit.",
    examples=(
        "replay merged again",
        "replay merged again --input base=/new/place/base",
    ),
)
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@inputs_option
@machine_options
@click.option("--quiet", is_flag=True, help="Show no progress.")
def replay(
    out: Path, new: Path, inputs: tuple[tuple[str, Path], ...], quiet: bool, **machine: Any
) -> int:
    """Run the merge that is on record in OUT again into NEW, and require the same bits.

    Inputs are looked for where they lay, seen from OUT; --input says where one lies now.
    """
    begun = time.monotonic()
    from weightsmith.engine.verify import replay as run_again

    with interruptible(new), open_progress(quiet) as progress:
        options = Machine(**machine).options()
        made = run_again(out, new, inputs=by_reference(inputs), progress=progress, **options)
    show_result(new, made.digest, time.monotonic() - begun)
    return 0
