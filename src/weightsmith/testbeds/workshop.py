"""Where a step of a build reads and writes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from weightsmith.testbeds.data.sources import Archive, fetch


@dataclass(frozen=True, slots=True)
class Workshop:
    """What a step works with: finished files in `root`, its own in `new`, at the same relative paths."""

    root: Path
    new: Path
    within: Callable[[int, int], None]

    def place(self, relative: str) -> Path:
        """Where to write a file, with its folder made."""
        path = self.new / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def archive(self, source: Archive) -> Path:
        """A downloaded archive."""
        return fetch(source)
