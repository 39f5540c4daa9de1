"""Where families and downloaded archives are kept."""

from __future__ import annotations

from pathlib import Path

from weightsmith.engine import cache_root


def family_folder(name: str) -> Path:
    """Where a family lies unless another place is given."""
    return cache_root() / "testbeds" / name


def archive_folder() -> Path:
    """Where downloaded archives lie."""
    return cache_root() / "archives"
