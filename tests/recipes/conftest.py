"""Small Llama-shaped checkpoints for recipes to talk about."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from weightsmith.recipes import load
from weightsmith.recipes.resolution.formula import Formula, OutputTensor, Resolved
from weightsmith.recipes.resolution.resolve import resolve

HIDDEN = 4


def llama_shapes(layers: int, *, head: bool, vocabulary: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, HIDDEN)}
    for i in range(layers):
        p = f"model.layers.{i}"
        shapes[f"{p}.input_layernorm.weight"] = (HIDDEN,)
        shapes[f"{p}.post_attention_layernorm.weight"] = (HIDDEN,)
        shapes |= {f"{p}.self_attn.{x}_proj.weight": (HIDDEN, HIDDEN) for x in "qkvo"}
        shapes |= {f"{p}.mlp.{x}_proj.weight": (8, HIDDEN) for x in ("gate", "up")}
        shapes[f"{p}.mlp.down_proj.weight"] = (HIDDEN, 8)
    shapes["model.norm.weight"] = (HIDDEN,)
    if head:
        shapes["lm_head.weight"] = (vocabulary, HIDDEN)
    return shapes


@dataclass(frozen=True)
class Solved:
    resolved: Resolved

    @property
    def outputs(self) -> dict[str, OutputTensor]:
        return {output.name: output for output in self.resolved.outputs}

    def formula(self, name: str) -> Formula:
        return self.outputs[name].formula

    def found(self, severity: str = "error") -> dict[str, str]:
        return {
            finding.code: finding.sentence
            for finding in self.resolved.findings
            if finding.severity.value == severity
        }


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Write a checkpoint of zeros: `make("a", layers=4)` a folder, `make("a.safetensors")` a file."""

    def write(
        name: str,
        layers: int = 4,
        *,
        head: bool = True,
        vocabulary: int = 6,
        dtype: str = "float32",
        extra: dict[str, np.ndarray] | None = None,
        without: tuple[str, ...] = (),
        config: dict[str, object] | None = None,
        only_extra: bool = False,
    ) -> Path:
        path = tmp_path / name
        shapes = {} if only_extra else llama_shapes(layers, head=head, vocabulary=vocabulary)
        tensors = {n: np.zeros(s, dtype) for n, s in shapes.items() if n not in without}
        tensors |= extra or {}
        if path.suffix:
            save_file(tensors, path)
            return path
        path.mkdir(parents=True)
        save_file(tensors, path / "model.safetensors")
        facts = {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "num_hidden_layers": layers,
            "vocab_size": vocabulary,
            "tie_word_embeddings": not head,
            **(config or {}),
        }
        (path / "config.json").write_text(json.dumps(facts))
        return path

    return write


@pytest.fixture
def solve(tmp_path: Path) -> Callable[..., Solved]:
    """Load a text whose models are names that `make` wrote, and resolve it."""

    def run(text: str, **options: object) -> Solved:
        return Solved(resolve(load(text, base_dir=tmp_path, **options)))

    return run
