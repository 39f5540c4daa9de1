"""Packages that earlier versions wrote still open, and give the same bits."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from weightsmith.checkpoints import open_checkpoint
from weightsmith.checkpoints.formats.package_header import read_package_header
from weightsmith.deltas import read_matrix
from weightsmith.tensors.digests import digest_tensor

DATA = Path(__file__).parent / "data"
EXPERTS = "model.layers.0.mlp.experts.down_proj"
# Tensors of two, three, four and one axes.
SHAPES = {
    EXPERTS: (3, 24, 64),
    "model.layers.0.self_attn.q_proj.weight": (64, 64),
    "vision.patch.weight": (32, 16, 3, 3),
    "model.norm.weight": (32,),
}


@pytest.fixture
def package(tmp_path):
    """What 0.1.0 made of changes of rank 2, by `delta pack --codecs low_rank`, beside its base of zeros."""
    shutil.copytree(DATA / "from-0.1.0", tmp_path / "package")
    (tmp_path / "base").mkdir()
    zeros = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    save_file(zeros, tmp_path / "base/model.safetensors", metadata={"format": "pt"})
    (tmp_path / "base/config.json").write_text('{"model_type": "tiny"}\n')
    return tmp_path / "package"


def test_a_package_of_0_1_0_gives_the_bits_that_are_on_record(package):
    header = read_package_header(package)
    tensors = open_checkpoint(package).tensors
    assert {name: t.shape for name, t in tensors.items()} == SHAPES
    assert {n: digest_tensor(t) for n, t in tensors.items()} == {
        name: packed.digest for name, packed in header.tensors.items()
    }


def test_experts_are_coded_as_matrices_below_each_other(package):
    stack = read_matrix(open_checkpoint(package).tensors[EXPERTS])
    values = np.linalg.svd(stack.reshape(72, 64), compute_uv=False)
    # One direction of the two was kept, in half precision.
    assert values[1] < 1e-3 * values[0]
