"""A tiny family of checkpoints, recipes beside it, and the command line as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from weightsmith.cli.main import execute

SHAPES = {
    "model.embed_tokens.weight": (32, 8),
    "model.layers.0.mlp.up_proj.weight": (12, 8),
    "model.layers.0.self_attn.q_proj.weight": (8, 8),
    "model.layers.1.mlp.up_proj.weight": (12, 8),
    "model.layers.1.self_attn.q_proj.weight": (8, 8),
    "model.norm.weight": (8,),
    "lm_head.weight": (32, 8),
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "vocab_size": 32,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
TIES = """\
weightsmith: 1
merge_method: ties
base_model: base
models:
  - {model: one, parameters: {weight: 0.5}}
  - {model: two, parameters: {weight: 0.25, density: 0.75}}
parameters: {density: 0.5}
"""
LINEAR = """\
weightsmith: 1
merge_method: linear
models:
  - {model: one, parameters: {weight: 3}}
  - {model: two, parameters: {weight: 1}}
"""


def save(
    folder: Path, tensors: dict[str, np.ndarray], config: dict[str, object] | None = None
) -> None:
    """Write a checkpoint folder."""
    folder.mkdir()
    save_file(tensors, str(folder / "model.safetensors"), metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config or CONFIG))


@dataclass(frozen=True)
class Result:
    """What a command line gave."""

    code: int
    out: str
    err: str


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder with base, one, two, and the recipes ties.yaml and linear.yaml."""
    generator = np.random.default_rng(3)
    base = {n: generator.standard_normal(s).astype(np.float32) for n, s in SHAPES.items()}
    save(tmp_path / "base", base)
    for name in ("one", "two"):
        save(
            tmp_path / name,
            {
                n: a + 0.1 * generator.standard_normal(a.shape).astype(np.float32)
                for n, a in base.items()
            },
        )
    (tmp_path / "ties.yaml").write_text(TIES)
    (tmp_path / "linear.yaml").write_text(LINEAR)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def weightsmith(family: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., Result]:  # noqa: ARG001
    """Run a command line in this process; its output is captured, so it is no terminal."""

    def run(*arguments: object) -> Result:
        capfd.readouterr()
        code = execute([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    return run


def shell(*arguments: object, cwd: Path, **environment: str) -> Result:
    """Run `python -m weightsmith` in a process of its own, with pipes."""
    finished = subprocess.run(
        [sys.executable, "-m", "weightsmith", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return Result(finished.returncode, finished.stdout, finished.stderr)


@pytest.fixture(name="shell")
def shell_fixture() -> Callable[..., Result]:
    """`shell` for tests."""
    return shell


@pytest.fixture(name="save")
def save_fixture() -> Callable[..., None]:
    """`save` for tests."""
    return save
