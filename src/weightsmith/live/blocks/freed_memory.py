"""Memory that was freed, back to the system."""

from __future__ import annotations

import ctypes
from contextlib import suppress


def give_memory_back() -> None:
    """Have the C library return what was freed, where it can.

    glibc keeps arrays of up to 32 MiB for the next ones of their sizes. A block and the head that comes behind it have
    none in common, so what the one left would lie beside what the other takes.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
