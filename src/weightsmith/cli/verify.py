"""`weightsmith verify`: is an output still what its manifest says?"""

from __future__ import annotations

from pathlib import Path

import click

from weightsmith.cli.documented import DocumentedCommand
from weightsmith.cli.options import by_reference, inputs_option, json_option
from weightsmith.cli.output import show_json, show_line
from weightsmith.cli.streams import STREAMS
from weightsmith.cli.text import counted


@click.command(
    cls=DocumentedCommand,
    short_help="Check that an output is still what its manifest says.",
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

    With --recompute, K tensors spread over the model are computed again and compared bit for bit. The exit code
    is 1 if anything differs.
    """
    from weightsmith.engine.verify import verify as check

    found = check(out, recompute=recompute, inputs=by_reference(inputs))
    # The exit code is the answer.
    STREAMS.done()
    if as_json:
        show_json(
            {
                "schema": 1,
                "ok": found.ok,
                "problems": list(found.problems),
                "tensors": found.tensors,
                "files": found.files,
                "recomputed": list(found.recomputed),
            }
        )
        return 0 if found.ok else 1
    for problem in found.problems:
        show_line(f"problem: {problem}")
    checked = [counted(found.tensors, "tensor"), counted(found.files, "file")]
    again = (
        f", {counted(len(found.recomputed), 'tensor')} computed again" if found.recomputed else ""
    )
    state = "is as recorded" if found.ok else f"differs in {counted(len(found.problems), 'point')}"
    show_line(f"{out} {state}: {' and '.join(checked)} checked{again}.")
    return 0 if found.ok else 1
