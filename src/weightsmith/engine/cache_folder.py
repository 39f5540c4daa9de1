"""Where things are kept that can be made again: built families, downloads, scores."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from weightsmith.tensors import expanded

CACHE_VARIABLE = "WEIGHTSMITH_CACHE"


def cache_root() -> Path:
    """$WEIGHTSMITH_CACHE, or the folder `weightsmith` in the platform's cache folder."""
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return expanded(named).absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "weightsmith"
    caches = os.environ.get("XDG_CACHE_HOME")
    return (Path(caches) if caches else Path.home() / ".cache") / "weightsmith"
