"""Mutants that somebody looked at and that nobody could notice: they are listed with the reason and not drawn."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import yaml

from mutation.sites import Mutant


class Change(NamedTuple):
    """A mutant as the list names it, which edits elsewhere in the file leave as it is."""

    file: str
    where: str
    line: str
    change: str


def change_of(mutant: Mutant, source: bytes) -> Change:
    """The name of a mutant of a file with this source."""
    line = source.splitlines()[mutant.line - 1].decode().strip()
    return Change(Path(mutant.path).name, mutant.where, line, mutant.change)


def listed(file: Path) -> dict[Change, str]:
    """The mutants on a list, with their reasons."""
    entries = yaml.safe_load(file.read_text())
    return {Change(e["file"], e["where"], e["line"], e["change"]): e["reason"] for e in entries}
