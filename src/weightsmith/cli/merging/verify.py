"""`weightsmith verify`: is an output still what its manifest says?"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from weightsmith.cli.documented import DocumentedCommand
from weightsmith.cli.options import by_reference, inputs_option, json_option
from weightsmith.cli.presenting import Block, present
from weightsmith.cli.standard_streams import STREAMS
from weightsmith.cli.terminal_text import counted

if TYPE_CHECKING:
    from weightsmith.engine import Verification


@click.command(
    cls=DocumentedCommand,
    examples=(
        "verify merged",
        "verify merged --recompute 10 --input base=/new/place/base",
    ),
)
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--recompute",
    type=click.IntRange(min=0),
    default=0,
    metavar="K",
    help="Compute K tensors again from the inputs.",
)
@inputs_option
@json_option
def verify(out: Path, recompute: int, inputs: tuple[tuple[str, Path], ...], as_json: bool) -> int:
    """Compare every file and tensor in OUT with its manifest.

    OUT is a folder, or a single file of an adapter, which has its manifest in the metadata. With --recompute, K tensors
    spread over the model are computed again and compared bit for bit. The exit code is 1 if anything differs.
    """
    from weightsmith.engine import verify_output as check

    found = check(out, recompute=recompute, inputs=by_reference(inputs))
    # The exit code is the answer.
    STREAMS.done()
    present(found, partial(_blocks, out), as_json=as_json)
    return 0 if found.ok else 1


def _blocks(out: Path, found: Verification) -> Iterator[Block]:
    for problem in found.problems:
        yield f"problem: {problem}"
    checked = f"{counted(found.tensors, 'tensor')} and {counted(found.files, 'file')} checked"
    if found.recomputed:
        checked += f", {counted(len(found.recomputed), 'tensor')} computed again"
    state = "is as recorded" if found.ok else f"differs in {counted(len(found.problems), 'point')}"
    yield f"{out} {state}: {checked}."
