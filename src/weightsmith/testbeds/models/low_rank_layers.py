"""Low-rank adapters: added to a model's linear layers, trained, written in PEFT's format, folded into the weights.

y = W x + (alpha / rank) * B A x        A [R, I] begins random, B [O, R] begins as zeros
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Shape:
    """Which layers get adapters, by the last part of their names, of what rank and scale."""

    rank: int
    alpha: float
    targets: tuple[str, ...] = PROJECTIONS


class Adapted(torch.nn.Module):
    """A linear layer with an adapter; only the adapter asks for gradients."""

    def __init__(self, inner: torch.nn.Linear, shape: Shape, generator: torch.Generator) -> None:
        super().__init__()
        self.inner = inner
        self.scale = shape.alpha / shape.rank
        bound = 1 / math.sqrt(inner.in_features)
        drawn = torch.rand(shape.rank, inner.in_features, generator=generator)
        self.down = torch.nn.Parameter((2 * drawn - 1) * bound)
        self.up = torch.nn.Parameter(torch.zeros(inner.out_features, shape.rank))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Outputs [..., O] of inputs [..., I]."""
        change = inputs @ self.down.T @ self.up.T
        changed: torch.Tensor = self.inner(inputs) + self.scale * change
        return changed


def add_adapters(model: Any, shape: Shape, seed: int) -> dict[str, Adapted]:
    """Freeze a model and put an adapter on every target, in place; the adapted layers by name."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    adapted: dict[str, Adapted] = {}
    for name, module in list(model.named_modules()):
        if name.rpartition(".")[2] in shape.targets:
            adapted[name] = Adapted(module, shape, generator)
            _put(model, name, adapted[name])
    return adapted


def fold_adapters(model: Any, adapted: dict[str, Adapted]) -> None:
    """Put each change into its layer's weights, in place: the model is as it was made, with other numbers."""
    with torch.no_grad():
        for name, layer in adapted.items():
            layer.inner.weight += layer.scale * (layer.up @ layer.down)
            _put(model, name, layer.inner)


def write_adapter(adapted: dict[str, Adapted], shape: Shape, base: str, folder: Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors as the library `peft` does for a causal model."""
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    for name, layer in adapted.items():
        prefix = f"base_model.model.{name}"
        tensors[f"{prefix}.lora_A.weight"] = layer.down.detach().contiguous()
        tensors[f"{prefix}.lora_B.weight"] = layer.up.detach().contiguous()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    content = {
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": shape.alpha,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": shape.rank,
        "target_modules": sorted(shape.targets),
        "task_type": "CAUSAL_LM",
        "use_rslora": False,
    }
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    (folder / "adapter_config.json").write_text(text, "utf-8")


def _put(model: Any, name: str, module: torch.nn.Module) -> None:
    owner, _, last = name.rpartition(".")
    setattr(model.get_submodule(owner), last, module)
