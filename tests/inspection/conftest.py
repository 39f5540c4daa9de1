"""Checkpoint folders of a few tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Write tensors (torch or numpy) and a config as a checkpoint folder."""

    def write(
        name: str, tensors: Mapping[str, Any], config: Mapping[str, Any] | None = None
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        made = {
            k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in tensors.items()
        }
        save_file(made, folder / "model.safetensors", metadata={"format": "pt"})
        if config is not None:
            (folder / "config.json").write_text(json.dumps(config))
        return folder

    return write
