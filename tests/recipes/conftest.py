"""Small Llama-shaped checkpoints for recipes to talk about."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from weightsmith.checkpoints import Checkpoint, open_checkpoint
from weightsmith.recipes import Recipe, load, resolve
from weightsmith.recipes.formula import OutputTensor, Resolved

HIDDEN, VOCABULARY = 4, 6


def llama_shapes(layers: int, *, head: bool = True, vocabulary: int = VOCABULARY) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, HIDDEN)}
    for i in range(layers):
        p = f"model.layers.{i}"
        shapes |= {f"{p}.input_layernorm.weight": (HIDDEN,), f"{p}.post_attention_layernorm.weight": (HIDDEN,)}
        shapes |= {f"{p}.self_attn.{x}_proj.weight": (HIDDEN, HIDDEN) for x in "qkvo"}
        shapes |= {f"{p}.mlp.gate_proj.weight": (8, HIDDEN), f"{p}.mlp.up_proj.weight": (8, HIDDEN)}
        shapes |= {f"{p}.mlp.down_proj.weight": (HIDDEN, 8)}
    shapes["model.norm.weight"] = (HIDDEN,)
    if head:
        shapes["lm_head.weight"] = (vocabulary, HIDDEN)
    return shapes


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Write a checkpoint folder of zeros: `make("a", layers=4)`."""

    def write(
        name: str,
        layers: int = 4,
        *,
        head: bool = True,
        vocabulary: int = VOCABULARY,
        dtype: str = "float32",
        extra: dict[str, np.ndarray] | None = None,
        without: tuple[str, ...] = (),
        config: dict[str, object] | None = None,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        shapes = llama_shapes(layers, head=head, vocabulary=vocabulary)
        tensors = {n: np.zeros(s, dtype) for n, s in shapes.items() if n not in without}
        save_file({**tensors, **(extra or {})}, folder / "model.safetensors")
        facts = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "num_hidden_layers": layers,
            "vocab_size": vocabulary,
            "tie_word_embeddings": not head,
            **(config or {}),
        }
        (folder / "config.json").write_text(json.dumps(facts))
        return folder

    return write


@pytest.fixture
def solve(tmp_path: Path) -> Callable[..., Resolved]:
    """Load a text whose models are names of folders made by `make`, and resolve it."""
    cache: dict[str, Checkpoint] = {}

    def opened(reference: str) -> Checkpoint:
        if reference not in cache:
            cache[reference] = open_checkpoint(tmp_path / reference)
        return cache[reference]

    def run(text: str, **options: object) -> Resolved:
        recipe: Recipe = load(text, base_dir=tmp_path, **options)  # type: ignore[arg-type]
        return resolve(recipe, opened)

    return run


def by_name(resolved: Resolved) -> dict[str, OutputTensor]:
    return {output.name: output for output in resolved.outputs}


def errors(resolved: Resolved) -> list[str]:
    return [finding.sentence for finding in resolved.findings if finding.severity.value == "error"]
