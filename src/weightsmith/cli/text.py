"""Words and numbers as the command line writes them."""

from __future__ import annotations

from collections.abc import Sequence

from weightsmith.wording import counted as counted
from weightsmith.wording import duration as duration
from weightsmith.wording import harmless as harmless


def shape(lengths: Sequence[int]) -> str:
    """A shape in brackets: `[4096, 11008]`."""
    return "[" + ", ".join(map(str, lengths)) + "]"
