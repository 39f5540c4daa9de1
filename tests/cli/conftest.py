"""A tiny family of checkpoints, recipes beside it, and the command line as a user types it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from rich.cells import cell_len
from safetensors.numpy import save_file

from weightsmith.cli.main import execute

from .workshop import build

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


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one of everything, which no test changes; see `workshop.LINES`."""
    root = tmp_path_factory.mktemp("workshop")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        build(root)
    return root


@pytest.fixture(name="shell")
def shell_fixture() -> Callable[..., Result]:
    """`shell` for tests."""
    return shell


@pytest.fixture(name="save")
def save_fixture() -> Callable[..., None]:
    """`save` for tests."""
    return save


class Terminal:
    """A pseudo-terminal in the place of stdout, whose text is kept without its escape sequences."""

    def __init__(self, columns: int) -> None:
        self.columns = columns
        self.text = ""

    def __enter__(self) -> Terminal:
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, self.columns, 0, 0))
        sys.stdout.flush()
        self._master, self._saved, self._stdout = master, os.dup(1), sys.stdout
        os.dup2(slave, 1)
        os.close(slave)
        sys.stdout = os.fdopen(os.dup(1), "w")
        # The kernel keeps a few kilobytes only, so somebody must read while the command writes.
        self._chunks: list[bytes] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        return self

    def _read(self) -> None:
        # Reading fails once the last writer has left.
        with contextlib.suppress(OSError):
            while chunk := os.read(self._master, 1 << 16):
                self._chunks.append(chunk)

    def __exit__(self, *_: object) -> None:
        sys.stdout.close()
        sys.stdout = self._stdout
        os.dup2(self._saved, 1)
        os.close(self._saved)
        self._reader.join()
        os.close(self._master)
        plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", b"".join(self._chunks).decode())
        self.text = plain.replace("\r\n", "\n")

    @property
    def lines(self) -> list[str]:
        """What stands on the terminal, without spaces at ends of lines."""
        return [line.rstrip() for line in self.text.splitlines()]


WIDTHS = (60, 80, 100, 140)


def shown_at(columns: int, arguments: Sequence[object], names: Sequence[str]) -> Terminal:
    """A command line at a width, having checked that no line is too long and that every name is there whole."""
    with Terminal(columns) as terminal:
        assert execute([str(argument) for argument in arguments]) in (0, 1)
    # No line break is put into a path, nor into the line that says where a result lies, which is data.
    own = [x for x in terminal.lines if " " in x.strip() and not x.startswith("../at-")]
    too_long = [line for line in own if cell_len(line) > columns]
    assert not too_long, terminal.text
    missing = [name for name in names if name not in terminal.text]
    assert not missing, terminal.text
    return terminal


@pytest.fixture(name="shown_at")
def shown_at_fixture(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Terminal]:
    """`shown_at` for tests, with nothing else that says how wide a terminal is."""
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    return shown_at
