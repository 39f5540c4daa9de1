"""What a tensor is read from, and what one reading of it costs, by hand-counted bytes and multiplications."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from weightsmith.deltas import DecodedTensor, PackedBits, VerifiedTensor
from weightsmith.deltas.changed import ChangedTensor
from weightsmith.deltas.changes import LowRankChange
from weightsmith.deltas.renamed_tensors import renamed
from weightsmith.deltas.rounded import RoundedTensor
from weightsmith.deltas.row_views import JoinedRows, ReplacedRows, SomeRows
from weightsmith.graph.graph import source
from weightsmith.tensors.compressed import (
    BlockConstant,
    ByChannel,
    LowRankProduct,
    OuterProduct,
)
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.files.safetensors_header import parse_file
from weightsmith.tensors.stored import LazyTensor, ReadingCost, behind, stored_in


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, LazyTensor]:
    """Tensors in three files: `w` (6, 4) and `v` (6, 4), factors `a` (2, 4) and `b` (6, 2), bytes, a number."""
    files = {
        "w": {"w": np.zeros((6, 4), np.float32)},
        "v": {"v": np.zeros((6, 4), np.float32)},
        "small": {
            "a": np.zeros((2, 4), np.float16),
            "b": np.zeros((6, 2), np.float16),
            "mask": np.zeros(3, np.uint8),
            "one": np.zeros((), np.float32),
            "rows": np.zeros(6, np.float32),
            "columns": np.zeros(4, np.float32),
        },
    }
    found: dict[str, LazyTensor] = {}
    for name, tensors in files.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
        found |= {t.name: t for t in parse_file(tmp_path / f"{name}.safetensors").tensors}
    return found


def changed(s: dict[str, LazyTensor], **more) -> ChangedTensor:
    return ChangedTensor(
        s["w"], (s["a"], s["b"]), lambda: LowRankChange(np.ones((6, 2)), np.ones((2, 4))), **more
    )


MADE = {
    "a file": (lambda s: s["w"], "w", 96),
    "renamed": (lambda s: renamed(s["w"], "x"), "w", 96),
    "verified": (lambda s: VerifiedTensor(s["w"], "", ""), "w", 96),
    "rounded": (lambda s: RoundedTensor(s["w"], DType.FLOAT16), "w", 96),
    "bits": (lambda s: PackedBits("x", (6, 4), s["mask"]), "small", 3),
    "two of six rows": (lambda s: SomeRows(s["w"], 1, 3), "w", 32),
    "joined": (lambda s: JoinedRows("x", (s["w"], SomeRows(s["v"], 0, 3))), "w v", 96 + 48),
    "replaced rows": (lambda s: ReplacedRows(s["w"], s["a"], (0, 5)), "w small", 96 + 16),
    "decoded": (
        lambda s: DecodedTensor(
            "x", DType.FLOAT32, (6, 4), (s["w"], s["v"]), lambda c: source(0) + c, (s["one"],)
        ),
        "w v small",
        96 + 96 + 4,
    ),
    "rows and columns": (
        lambda s: OuterProduct("x", (6, 4), s["rows"], s["columns"], False),
        "small",
        24 + 16,
    ),
    "factors": (lambda s: LowRankProduct("x", (6, 4), s["b"], s["a"]), "small", 24 + 16),
    "blocks": (lambda s: BlockConstant("x", (6, 4), s["rows"], 4), "small", 24),
    "channels": (lambda s: ByChannel("x", (6, 4), 1, s["columns"]), "small", 16),
    "an adapter": (changed, "w small", 96 + 16 + 24),
    "an adapter with more behind it": (
        lambda s: changed(s, magnitude=s["rows"], beside=(s["v"],)),
        "w small v",
        96 + 16 + 24 + 24 + 96,
    ),
}


@pytest.mark.parametrize("kind", MADE)
def test_files_and_bytes_of_every_kind_of_tensor(stored, tmp_path, kind):
    make, files, nbytes = MADE[kind]
    tensor = make(stored)
    assert [path.stem for path in stored_in([tensor])] == files.split()
    assert tensor.cost.stored_bytes == nbytes
    assert all(path.parent == tmp_path for path in stored_in([tensor]))


def test_factors_are_held_in_float64_and_multiplied(stored):
    """(6, 2) @ (2, 4) is 6 x 4 x 2 products; 12 + 8 numbers of 8 bytes; a second adapter adds its own."""
    first = changed(stored)
    assert first.cost == ReadingCost(136, 160, 48)
    second = ChangedTensor(first, (stored["a"], stored["b"]), first.load)
    assert second.cost == ReadingCost(136 + 40, 320, 96)


def test_a_tensor_that_several_are_made_of_is_behind_them_once(stored):
    joined = JoinedRows("x", (SomeRows(stored["w"], 0, 2), SomeRows(stored["w"], 2, 6)))
    assert [id(t) for t in behind([joined, stored["w"]])].count(id(stored["w"])) == 1
    assert ReadingCost.of([joined]).stored_bytes == 96
