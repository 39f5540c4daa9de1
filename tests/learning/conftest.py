"""A tiny perceptron with three experts, and items that it classifies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from weightsmith.live import residual_perceptron
from weightsmith.statistics import Sample, Samples

CONFIG = {
    "model_type": "digits-mlp",
    "num_inputs": 5,
    "hidden_size": 6,
    "num_hidden_layers": 2,
    "num_labels": 3,
}
EXPERTS = ("one", "two", "three")


def save(folder: Path, state: dict[str, torch.Tensor]) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def family(tmp_path) -> Path:
    """A folder with `base` and experts around it."""
    torch.manual_seed(0)
    base = residual_perceptron(CONFIG).state_dict()
    save(tmp_path / "base", base)
    for name in EXPERTS:
        own = {key: value + 0.3 * torch.randn_like(value) for key, value in base.items()}
        save(tmp_path / name, own)
    return tmp_path


def recipe(family: Path, per: Any = ("expert", "tensor"), **more: Any) -> dict[str, Any]:
    """Task arithmetic with free weights."""
    number = {"free": [0, 1], "start": 0.3, "per": list(per) if isinstance(per, tuple) else per}
    return {
        "weightsmith": 1,
        "merge_method": "task_arithmetic",
        "base_model": str(family / "base"),
        "models": [{"model": str(family / name)} for name in EXPERTS],
        "parameters": {"weight": number},
        **more,
    }


def logits(model: Any, inputs: Any) -> torch.Tensor:
    return model.logits({"inputs": inputs["inputs"]})[:, None]


def items(name: str = "toy", count: int = 12, seed: int = 1) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 5, generator=generator)
    y = torch.randint(3, (count, 1), generator=generator)
    drawn = [Sample({"inputs": a}, b, 3) for a, b in zip(x, y, strict=True)]
    return Samples(name, drawn, "log-likelihood of the label", logits)
