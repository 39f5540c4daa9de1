"""Checkpoints of tiny networks and text files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.live.conftest import saved as saved

TEXT = "The quick brown fox jumps over the lazy dog, and nobody is there to see it. " * 6


@pytest.fixture
def corpus(tmp_path) -> Path:
    """A text file."""
    path = tmp_path / "corpus.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture
def one_thread():
    """Threads of the parent are none of the child's, which would wait for them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
