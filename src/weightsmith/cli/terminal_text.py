"""Words and numbers as the command line writes them."""

from __future__ import annotations

from collections.abc import Sequence

from weightsmith.wording import abridged as abridged
from weightsmith.wording import counted as counted
from weightsmith.wording import duration as duration
from weightsmith.wording import harmless as harmless
from weightsmith.wording import shown as shown


def shape(lengths: Sequence[int]) -> str:
    """A shape in brackets: `[4096, 11008]`."""
    return "[" + ", ".join(map(str, lengths)) + "]"


def percent(share: float) -> str:
    """A share as `12.3 %`; what is too small to matter is `< 0.01 %`, so that it is not taken for nothing."""
    return "< 0.01 %" if 0.0 < share < 1e-4 else f"{100 * share:.3g} %"
