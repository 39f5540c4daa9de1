"""Small checkpoints, evaluations and leagues to report on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from weightsmith.evaluation.scores import Evaluation, ItemScores, TaskScore

LAYERS = 3
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 12,
    "num_hidden_layers": LAYERS,
    "vocab_size": 20,
    "tie_word_embeddings": False,
}


def _shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (20, 12)}
    for layer in range(LAYERS):
        block = f"model.layers.{layer}"
        shapes[f"{block}.self_attn.q_proj.weight"] = (12, 12)
        shapes[f"{block}.mlp.up_proj.weight"] = (16, 12)
        shapes[f"{block}.input_layernorm.weight"] = (12,)
    return {**shapes, "model.norm.weight": (12,), "lm_head.weight": (20, 12)}


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder with base, fr, de and ties.yaml."""
    random = np.random.default_rng(5)
    base = {n: random.standard_normal(s).astype(np.float32) for n, s in _shapes().items()}
    for name in ("base", "fr", "de"):
        size = 0.0 if name == "base" else 0.1
        tensors = {
            n: a + np.float32(size) * random.standard_normal(a.shape).astype(np.float32)
            for n, a in base.items()
        }
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
        (tmp_path / name / "config.json").write_text(json.dumps(CONFIG))
    (tmp_path / "ties.yaml").write_text(
        "weightsmith: 1\nmerge_method: ties\nbase_model: base\n"
        "models: [{model: fr}, {model: de}]\nparameters: {density: 0.5}\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def evaluation() -> Callable[..., Evaluation]:
    """An evaluation of right and wrong items by task; `shares` are the tasks' accuracies."""

    def made(subject: str, seed: int = 0, /, **shares: float) -> Evaluation:
        random = np.random.default_rng(seed)
        items = {}
        for task, share in shares.items():
            values = (random.random(80) < share).astype(np.float64)
            items[task] = ItemScores(
                task,
                "accuracy",
                tuple(f"{task}-{i}" for i in range(80)),
                values,
                np.ones(80),
                binary=True,
                slices=tuple("ab"[i % 2] for i in range(80)),
            )
        scores = tuple(TaskScore.of(own) for own in items.values())
        return Evaluation(subject, "digest", "suite", "suite-digest", scores, items)

    return made


def _estimate(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.02, "high": value + 0.03}


def _league_row(name: str, setting: str, value: float, seconds: float | None) -> dict[str, object]:
    return {
        "name": name,
        "setting": setting,
        "parameters": {"lambda": 0.3} if setting == "tuned" else {},
        "at_edge": False,
        "mean": _estimate(value),
        "normalized": _estimate(value),
        "retained": None,
        "general": None,
        "unseen": _estimate(-0.1),
        "rank": None,
        "cost": None if seconds is None else {"cpu_seconds": seconds, "peak_bytes": 1 << 26},
        "scores": [],
    }


@pytest.fixture
def league() -> dict[str, object]:
    """What `league --json` writes."""
    return {
        "schema": 1,
        "family": "tiny",
        "digest": "0",
        "split": "test",
        "experts": ["fr", "de"],
        "ended": "budget",
        "rows": [
            _league_row("base", "base", 0.5, None),
            _league_row("experts", "experts", 1.0, None),
            _league_row("average", "average", 0.7, 0.5),
            _league_row("ties", "tuned", 0.9, 3.0),
            _league_row("ties", "default", 0.8, 3.1),
        ],
        "left_out": [{"method": "fisher", "reason": "it needs statistics"}],
    }
