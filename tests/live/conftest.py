"""Checkpoints of tiny networks, each made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from .architectures import save


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Callable[..., Path]:
    """The folder of an architecture's checkpoint, by name and seed."""
    made: dict[tuple[str, int], Path] = {}

    def folder(name: str, seed: int = 0) -> Path:
        if (name, seed) not in made:
            made[name, seed] = save(name, tmp_path_factory.mktemp("model"), seed)
        return made[name, seed]

    return folder
