"""What is said after Ctrl-C: what is safe, and how to go on."""

from __future__ import annotations

import sys
from pathlib import Path

from weightsmith.cli.text import harmless

INTERRUPTED = 130


def tell_interrupted(out: Path) -> int:
    """Write one line on what is left of the run into `out`; returns the exit code."""
    from weightsmith.engine.staging import SUFFIX

    staging = out.with_name(out.name + SUFFIX)
    if staging.is_dir():
        what = (
            f"finished tensors are safe in {str(staging)!r}, no input was touched, and the same "
            "command goes on from there"
        )
    else:
        what = "nothing was written, and the same command starts over"
    print(f"weightsmith: interrupted: {harmless(what)}.", file=sys.stderr)
    return INTERRUPTED
