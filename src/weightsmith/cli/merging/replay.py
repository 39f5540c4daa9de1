"""`weightsmith replay`: make an output again from its manifest, bit for bit."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import click

from weightsmith.cli.documented import DocumentedCommand
from weightsmith.cli.options import (
    Machine,
    by_reference,
    inputs_option,
    json_option,
    machine_options,
    quiet_option,
)
from weightsmith.cli.written import write


@click.command(
    cls=DocumentedCommand,
    examples=(
        "replay merged again",
        "replay merged again --input base=/new/place/base",
    ),
)
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@inputs_option
@machine_options
@json_option
@quiet_option
def replay(
    out: Path,
    new: Path,
    inputs: tuple[tuple[str, Path], ...],
    quiet: bool,
    as_json: bool,
    **machine: Any,
) -> int:
    """Run the merge that is on record in OUT again into NEW, and require the same bits.

    Inputs are looked for where they lay, seen from OUT; --input says where one lies now.
    """
    begun = time.monotonic()
    from weightsmith.engine import replay_output as run_again

    options = {"inputs": by_reference(inputs), **Machine(**machine).options()}
    return write(new, begun, partial(run_again, out, new, **options), quiet=quiet, as_json=as_json)
