"""Paths as people write them."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(path: str | Path) -> Path:
    """A path with `~` for a home folder; that of a user whom the system does not know is a name like any other."""
    return Path(os.path.expanduser(path))


def real(path: Path) -> Path:
    """The path without links; one that leads in a circle stays as it is, for whoever opens it to refuse."""
    return Path(os.path.realpath(path))
