"""A small family on disk made without torch, and merges of it in processes of their own that may be killed."""

from __future__ import annotations

import contextlib
import copy
import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weightsmith.engine.records.manifest import FILE_NAME
from weightsmith.engine.records.verify import verify_output
from weightsmith.engine.running.run import run
from weightsmith.errors import OutputError
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.files.safetensors_header import encode_header

from .merge_once import plan_of

MERGE_ONCE = Path(__file__).with_name("merge_once.py")
SHAPES = {
    "model.embed_tokens.weight": (1000, 320),
    "model.layers.0.self_attn.q_proj.weight": (320, 320),
    "model.layers.0.mlp.up_proj.weight": (4000, 320),
    "model.layers.0.input_layernorm.weight": (320,),
    "model.layers.1.self_attn.q_proj.weight": (320, 320),
    "model.layers.1.mlp.up_proj.weight": (4000, 320),
    "model.layers.1.input_layernorm.weight": (320,),
    "lm_head.weight": (1000, 320),
}


def write_checkpoint(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    """Float16 tensors and a small config."""
    folder.mkdir()
    header = encode_header([(name, DType.FLOAT16, a.shape) for name, a in tensors.items()])
    (folder / "model.safetensors").write_bytes(
        header + b"".join(a.astype("<f2").tobytes() for a in tensors.values())
    )
    config = {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
    }
    (folder / "config.json").write_text(json.dumps(config))


@dataclass
class Bench:
    """A family, a recipe with several passes and shards, and the bytes it must give."""

    root: Path
    recipe: dict[str, Any]
    expected: dict[str, bytes]

    @property
    def out(self) -> Path:
        return self.root / "out"

    @property
    def staging(self) -> Path:
        return self.root / "out.partial"

    def start(
        self, out: Path | None = None, prefix: tuple[str, ...] = (), **options: Any
    ) -> subprocess.Popen[str]:
        """A merge in a process of its own."""
        arguments = [json.dumps(self.recipe), str(out or self.out), json.dumps(options)]
        return subprocess.Popen(
            [*prefix, sys.executable, str(MERGE_ONCE), *arguments],
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def finish(self, out: Path | None = None, **options: Any) -> None:
        """The same merge in this process, to its end; the bytes must be those of a run that nothing disturbed."""
        run(plan_of(self.recipe, **options), out or self.out)
        self.check(out or self.out)

    def check(self, out: Path) -> None:
        """The output is whole, and nothing else is left beside it."""
        found = bytes_of(out)
        assert found.keys() == self.expected.keys()
        different = {name for name in found if found[name] != self.expected[name]}
        # The manifest says where the inputs lie seen from the output.
        assert different <= (set() if out.parent == self.root else {FILE_NAME})
        assert verify_output(out).ok
        assert not out.with_name(out.name + ".partial").exists()

    def check_after_a_fault(self, out: Path | None = None) -> None:
        """Whatever happened: the output is absent or whole, and the same call ends with it."""
        out = out or self.out
        if out.exists():
            found = bytes_of(out)
            assert found.keys() >= self.expected.keys()
            # Only the very last steps, after the record of the run is gone, make it "exists" instead of "done".
            with contextlib.suppress(OutputError):
                run(plan_of(self.recipe), out)
            self.check(out)
        else:
            self.finish(out)


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file of a folder by name."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def ended(process: subprocess.Popen[str], timeout: float = 120) -> tuple[int, str]:
    """Exit code and message of a process; there must be no traceback."""
    _, message = process.communicate(timeout=timeout)
    assert "Traceback" not in message, message
    return process.returncode, message


def make_bench(inputs: Path, root: Path) -> Bench:
    """A TIES merge of two experts into five shards: inputs in one folder, the output in another."""
    generator = np.random.default_rng(0)
    base = {name: generator.normal(0, 0.02, shape) for name, shape in SHAPES.items()}
    write_checkpoint(inputs / "base", base)
    (inputs / "base" / "tokenizer.json").write_text("{}")
    for number in (1, 2):
        tensors = {n: a + generator.normal(0, 2e-3, a.shape) for n, a in base.items()}
        write_checkpoint(inputs / f"e{number}", tensors)
    recipe = {
        "weightsmith": 1,
        "merge_method": "ties",
        "base_model": str(inputs / "base"),
        "models": [{"model": str(inputs / f"e{number}")} for number in (1, 2)],
        "dtype": "float16",
        "shard_size": 2_700_000,
    }
    run(plan_of(recipe), root / "out")
    expected = bytes_of(root / "out")
    shutil.rmtree(root / "out")
    return Bench(root, recipe, expected)


@pytest.fixture(scope="session")
def shared_bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Inputs that no test changes."""
    return make_bench(tmp_path_factory.mktemp("inputs"), tmp_path_factory.mktemp("outputs"))


@pytest.fixture
def bench(shared_bench: Bench, tmp_path: Path) -> Bench:
    """An output of its own for every test, equally far from the inputs, as the manifest says where they lie."""
    return Bench(tmp_path, copy.deepcopy(shared_bench.recipe), shared_bench.expected)


@pytest.fixture(scope="session")
def seconds(shared_bench: Bench) -> float:
    """How long an undisturbed merge in a process of its own takes."""
    begun = time.monotonic()
    code, message = ended(shared_bench.start(shared_bench.root / "timed"))
    assert code == 0, message
    return time.monotonic() - begun
