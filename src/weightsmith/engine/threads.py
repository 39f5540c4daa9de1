"""How many threads a run has."""

from __future__ import annotations

import os

from weightsmith.errors import UsageError
from weightsmith.wording import literal

# More than any machine has cores; each holds a tile of every input, and a system has a limit of its own.
MOST_THREADS = 1024


def check_memory(memory_bytes: int) -> None:
    """Raise UsageError for a budget of no bytes."""
    if memory_bytes < 1:
        raise UsageError(
            f"A merge cannot have {memory_bytes} bytes of memory; give a number from 1."
        )


def thread_count(threads: int | None) -> int:
    """As many as were asked for, or one for each core; raises UsageError for no number of threads that can be."""
    if threads is None:
        return os.cpu_count() or 1
    if (
        isinstance(threads, bool)
        or not isinstance(threads, int)
        or not 1 <= threads <= MOST_THREADS
    ):
        raise UsageError(
            f"A run has 1 to {MOST_THREADS} threads, not {literal(threads)}; leave the number out for one per core."
        )
    return threads
