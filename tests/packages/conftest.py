"""A base and fine-tunes of it on disk, in any dtype, for the tests of packages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weightsmith.checkpoints import open_checkpoint
from weightsmith.tensors.digests import digest_tensor
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.files.safetensors_header import encode_header

Stored = tuple[DType, tuple[int, ...], bytes]
SHAPES = {
    "model.embed_tokens.weight": (96, 64),
    "model.layers.0.input_layernorm.weight": (64,),
    "model.layers.0.mlp.up_proj.weight": (128, 64),
    "model.layers.0.self_attn.q_proj.weight": (64, 64),
    "model.norm.weight": (64,),
    "lm_head.weight": (96, 64),
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "vocab_size": 96,
    "tie_word_embeddings": False,
}


def stored(array: np.ndarray, dtype: DType) -> Stored:
    """An array of float64 as a tensor of a float dtype; rounded by cutting, which is all the same here."""
    if dtype is DType.BFLOAT16:
        words = (array.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return dtype, array.shape, words.tobytes()
    if dtype.is_fp8:
        half = array.astype(np.float16).view(np.uint16) >> 8
        return dtype, array.shape, half.astype(np.uint8).tobytes()
    return dtype, array.shape, array.astype(str(dtype)).tobytes()


def write(
    folder: Path, tensors: Mapping[str, Stored], config: Mapping[str, Any] | None = None
) -> Path:
    """Write a checkpoint folder."""
    folder.mkdir(parents=True, exist_ok=True)
    header = encode_header([(name, dtype, shape) for name, (dtype, shape, _) in tensors.items()])
    data = b"".join(content for _, _, content in tensors.values())
    (folder / "model.safetensors").write_bytes(header + data)
    (folder / "config.json").write_text(json.dumps(CONFIG if config is None else config))
    return folder


@dataclass(frozen=True)
class Family:
    """A base, and fine-tunes made of it."""

    root: Path
    base: Path
    arrays: dict[str, np.ndarray]
    dtype: DType

    def finetune(
        self,
        name: str,
        *,
        seed: int = 1,
        size: float = 1e-2,
        replaced: Mapping[str, Stored] | None = None,
        absent: tuple[str, ...] = (),
        config: Mapping[str, Any] | None = None,
    ) -> Path:
        """A fine-tune whose tensors moved by `size`, but for those that are replaced or absent."""
        rng = np.random.default_rng(seed)
        tensors = {
            n: stored(a + size * rng.standard_normal(a.shape), self.dtype)
            for n, a in self.arrays.items()
            if n not in absent
        }
        return write(self.root / name, tensors | dict(replaced or {}), config)


@pytest.fixture
def make_family(tmp_path):
    """A family in a dtype."""

    def make(dtype: DType = DType.FLOAT32, root: str = "family") -> Family:
        rng = np.random.default_rng(0)
        arrays = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
        folder = tmp_path / root
        base = write(folder / "base", {n: stored(a, dtype) for n, a in arrays.items()})
        return Family(folder, base, arrays, dtype)

    return make


@pytest.fixture
def family(make_family) -> Family:
    """A family in float32."""
    return make_family()


@pytest.fixture(name="stored")
def stored_fixture():
    """`stored` for tests."""
    return stored


@pytest.fixture(name="write")
def write_fixture():
    """`write` for tests."""
    return write


@pytest.fixture
def content():
    """The bytes of every tensor of a checkpoint by name, in one piece."""

    def read(folder: Path | str) -> dict[str, bytes]:
        found = {}
        for name, tensor in open_checkpoint(folder).tensors.items():
            buffer = bytearray(tensor.nbytes)
            tensor.read_into(0, tensor.numel, memoryview(buffer))
            found[name] = bytes(buffer)
        return found

    return read


@pytest.fixture
def digests():
    """The digest of every tensor of a checkpoint by name."""

    def read(folder: Path | str) -> dict[str, str]:
        return {n: digest_tensor(t) for n, t in open_checkpoint(folder).tensors.items()}

    return read
