"""Tiny checkpoints on disk for the tests of this room."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from weightsmith.checkpoints import Checkpoint, open_checkpoint


def llama_shapes(
    layers: int = 2, vocab: int = 32, *, head: bool = True
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a small Llama, in the order of a real file."""
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, 8)}
    for layer in range(layers):
        block = f"model.layers.{layer}"
        shapes |= {
            f"{block}.input_layernorm.weight": (8,),
            f"{block}.mlp.down_proj.weight": (8, 12),
            f"{block}.mlp.up_proj.weight": (12, 8),
            f"{block}.self_attn.q_proj.weight": (8, 8),
        }
    shapes["model.norm.weight"] = (8,)
    return shapes | ({"lm_head.weight": (vocab, 8)} if head else {})


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Write a checkpoint folder: tensors by name (arrays, or shapes to fill), and a config."""

    def write(
        name: str = "model",
        tensors: Mapping[str, np.ndarray | tuple[int, ...]] | None = None,
        config: dict[str, object] | None = None,
        file: str = "model.safetensors",
    ) -> Path:
        path = tmp_path / name
        path.mkdir(parents=True, exist_ok=True)
        generator = np.random.default_rng(7)
        arrays = {
            key: value
            if isinstance(value, np.ndarray)
            else generator.standard_normal(value).astype(np.float32)
            for key, value in (llama_shapes() if tensors is None else tensors).items()
        }
        save_file(arrays, str(path / file), metadata={"format": "pt"})
        if config is not None:
            (path / "config.json").write_text(json.dumps(config))
        return path

    return write


@pytest.fixture
def llama(folder: Callable[..., Path]) -> Callable[..., Checkpoint]:
    """Open a small Llama checkpoint with the given size and config keys."""

    def make(
        name: str = "model",
        *,
        layers: int = 2,
        vocab: int = 32,
        head: bool = True,
        extra: Mapping[str, np.ndarray | tuple[int, ...]] | None = None,
        drop: tuple[str, ...] = (),
        **config: object,
    ) -> Checkpoint:
        shapes: dict[str, np.ndarray | tuple[int, ...]] = dict(
            llama_shapes(layers, vocab, head=head)
        )
        shapes |= dict(extra or {})
        for key in drop:
            del shapes[key]
        document = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "num_hidden_layers": layers,
            "vocab_size": vocab,
            "tie_word_embeddings": not head,
            **config,
        }
        return open_checkpoint(folder(name, shapes, document))

    return make
