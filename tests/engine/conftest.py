"""A small real family of checkpoints on disk: a base and fine-tunes of it, bfloat16, in the layout of Hugging Face."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

SHAPES = {
    "model.embed_tokens.weight": (512, 96),
    "model.layers.0.self_attn.q_proj.weight": (96, 96),
    "model.layers.0.mlp.up_proj.weight": (3000, 96),
    "model.layers.0.input_layernorm.weight": (96,),
    "model.layers.1.self_attn.q_proj.weight": (96, 96),
    "model.layers.1.mlp.up_proj.weight": (3000, 96),
    "model.layers.1.input_layernorm.weight": (96,),
    "model.norm.weight": (96,),
    "lm_head.weight": (512, 96),
}
CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 96,
    "vocab_size": 512,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


class Family:
    """Folders `base`, `e1`, `e2`, `e3`, and what a recipe over them looks like."""

    def __init__(self, root: Path) -> None:
        self.root = root
        base = self._write("base", None)
        for number in (1, 2, 3):
            self._write(f"e{number}", base, number)

    def _write(
        self, name: str, base: dict[str, torch.Tensor] | None, seed: int = 0
    ) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        tensors = {}
        for key, shape in SHAPES.items():
            tensor = torch.randn(shape, generator=generator) * 0.02
            if base is not None:
                changed = torch.rand(shape, generator=generator) < 0.4
                tensor = (
                    base[key].float() + torch.randn(shape, generator=generator) * 2e-3 * changed
                )
            tensors[key] = tensor.to(torch.bfloat16)
        folder = self.root / name
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(CONFIG))
        return tensors

    def tensors(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of a member, or of any folder beside them."""
        return {
            k: v
            for file in sorted((self.root / name).glob("*.safetensors"))
            for k, v in load_file(file).items()
        }

    def recipe(
        self,
        method: str,
        *,
        experts: int = 3,
        per_expert: dict[str, Any] | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """A native recipe with absolute paths."""
        from weightsmith.methods.parts import registry

        models = [
            {"model": str(self.root / f"e{i + 1}"), "parameters": dict(per_expert or {})}
            for i in range(experts)
        ]
        recipe: dict[str, Any] = {
            "weightsmith": 1,
            "merge_method": method,
            "models": models,
            "dtype": "bfloat16",
        }
        if registry.get(method).base is not registry.Base.IGNORED:
            recipe["base_model"] = str(self.root / "base")
        return recipe | more


@pytest.fixture
def family(tmp_path: Path) -> Family:
    """A fresh family."""
    return Family(tmp_path)


@pytest.fixture
def weights_of() -> Callable[[Path], dict[str, bytes]]:
    """The bytes of every weight file of a folder."""
    return lambda folder: {
        file.name: file.read_bytes() for file in sorted(folder.glob("*.safetensors"))
    }
