"""A small family with awkward sizes: no multiples of 8, rows of odd length, a tensor without elements."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

SHAPES = {
    "model.embed_tokens.weight": (13, 7),
    "model.layers.0.mlp.up_proj.weight": (7, 11),
    "model.layers.0.self_attn.q_proj.bias": (5,),
    "model.layers.1.mlp.up_proj.weight": (7, 11),
    "model.layers.1.self_attn.q_proj.bias": (5,),
    "model.norm.weight": (1,),
    "nothing": (0, 3),
}
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 7,
    "vocab_size": 13,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}


class Family:
    """Folders of one base and its experts, made from arrays."""

    def __init__(self, root: Path) -> None:
        self.root = root
        rng = np.random.default_rng(0)
        self.base = {n: rng.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}
        self.write("base", self.base)

    def write(self, name: str, tensors: dict[str, np.ndarray]) -> Path:
        folder = self.root / name
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(CONFIG))
        return folder

    def experts(self, count: int, change) -> list[dict[str, np.ndarray]]:
        """Experts whose tensors are change(expert, name, base) of the base's."""
        made = []
        for i in range(count):
            expert = {n: change(i, n, b).astype(np.float32) for n, b in self.base.items()}
            self.write(f"e{i + 1}", expert)
            made.append(expert)
        return made

    def random(self, count: int) -> list[dict[str, np.ndarray]]:
        rng = np.random.default_rng(1)

        def change(_i, _name, base):
            moved = rng.random(base.shape) < 0.6
            return base + 0.1 * rng.normal(size=base.shape) * moved

        return self.experts(count, change)

    def recipe(self, method: str, count: int, **keys) -> dict:
        return {
            "weightsmith": 1,
            "merge_method": method,
            "base_model": str(self.root / "base"),
            "models": [{"model": str(self.root / f"e{i + 1}")} for i in range(count)],
            **keys,
        }


@pytest.fixture
def family(tmp_path) -> Family:
    return Family(tmp_path)


@pytest.fixture
def write_lora():
    """A function that writes a LoRA of rank 1 of one matrix, of ones, in PEFT's layout."""

    def write(folder: Path, module: str, shape: tuple[int, int], alpha: float = 1.0) -> Path:
        folder.mkdir()
        name = f"base_model.model.{module}.lora_{{}}.weight"
        factors = {name.format("A"): (1, shape[1]), name.format("B"): (shape[0], 1)}
        save_file(
            {n: np.ones(s, np.float32) for n, s in factors.items()},
            folder / "adapter_model.safetensors",
        )
        settings = {
            "peft_type": "LORA",
            "r": 1,
            "lora_alpha": alpha,
            "target_modules": [module.rpartition(".")[2]],
        }
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        return folder

    return write
