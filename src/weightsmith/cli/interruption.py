"""What is said after Ctrl-C: what is safe, and how to go on."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from weightsmith.cli.terminal_text import harmless

INTERRUPTED = 130


@contextmanager
def interruptible(out: Path) -> Iterator[None]:
    """A run into `out`: Ctrl-C ends the command with one line on what is left of it."""
    try:
        yield
    except KeyboardInterrupt:
        _report_interruption(out)
        raise click.exceptions.Exit(INTERRUPTED) from None
    except Exception as error:
        if not is_interrupted(error):
            raise
        _report_interruption(out)
        raise click.exceptions.Exit(INTERRUPTED) from None


def is_interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind an error: a library that it meets while it is imported makes another one of it."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False


def _report_interruption(out: Path) -> None:
    from weightsmith.publishing import SUFFIX

    staging = out.with_name(out.name + SUFFIX)
    if staging.is_dir():
        what = (
            f"finished tensors are safe in {str(staging)!r}, no input was touched, and the same "
            "command goes on from there"
        )
    else:
        what = "nothing was written, and the same command starts over"
    print(f"weightsmith: interrupted: {harmless(what)}.", file=sys.stderr)
