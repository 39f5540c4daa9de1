"""Checkpoints of tiny networks and text files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.live.architectures import save

TEXT = "The quick brown fox jumps over the lazy dog, and nobody is there to see it. " * 6


@pytest.fixture(scope="session")
def saved(tmp_path_factory) -> Callable[..., Path]:
    """The folder of an architecture's checkpoint, by name and seed."""
    made: dict[tuple[str, int], Path] = {}

    def folder(name: str, seed: int = 0) -> Path:
        if (name, seed) not in made:
            made[name, seed] = save(name, tmp_path_factory.mktemp("model"), seed)
        return made[name, seed]

    return folder


@pytest.fixture
def corpus(tmp_path) -> Path:
    """A text file."""
    path = tmp_path / "corpus.txt"
    path.write_text(TEXT)
    return path
