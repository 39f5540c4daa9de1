"""Merged adapters are exact changes of low rank but for roundings, and are stored so."""

from __future__ import annotations

import numpy as np
import pytest
from tests.deltas.stored_arrays import from_bfloat16, read, stored, to_bfloat16

from weightsmith.deltas.codecs import decoded, encode_exactly, in_memory
from weightsmith.deltas.codecs.codec import part_in_memory
from weightsmith.deltas.codecs.lossless import encode_lossless
from weightsmith.errors import CheckpointError
from weightsmith.tensors.dtypes import DType

SHAPE = (192, 320)


def merged(dtype: DType, rank: int, scale: float = 1e-3) -> tuple:
    """A base and what merging an adapter makes of it."""
    rng = np.random.default_rng(rank)
    base = (0.05 * rng.normal(size=SHAPE)).astype(np.float32)
    words = to_bfloat16(base) if dtype is DType.BFLOAT16 else base.astype(np.float16)
    known = {DType.FLOAT32: base, DType.BFLOAT16: from_bfloat16(to_bfloat16(base))}
    start = known.get(dtype, base.astype(np.float16).astype(np.float32))
    change = scale * rng.normal(size=(SHAPE[0], rank)) @ rng.normal(size=(rank, SHAPE[1]))
    total = (start + change).astype(np.float32)
    if dtype is DType.FLOAT32:
        return stored(base), stored(total)
    rounded = to_bfloat16(total) if dtype is DType.BFLOAT16 else total.astype(np.float16)
    return stored(words, dtype), stored(rounded, dtype)


@pytest.mark.parametrize(
    ("dtype", "share"),
    [(DType.FLOAT32, 0.3), (DType.BFLOAT16, 0.75), (DType.FLOAT16, 0.7)],
    ids=str,
)
@pytest.mark.parametrize("rank", [1, 8])
def test_a_merged_adapter_takes_far_fewer_bytes_and_comes_back_exactly(dtype, share, rank):
    base, target = merged(dtype, rank)
    encoded = encode_exactly(base, target)
    assert (encoded.codec, encoded.parameters["rank"]) == ("refined", rank)
    assert encoded.nbytes < share * encode_lossless(base, target).nbytes
    back = in_memory(encoded, base, "x", dtype, SHAPE)
    assert read(back) == read(target)
    assert read(back, 1000, 40_001) == read(target, 1000, 40_001)


def test_a_change_of_full_rank_is_left_to_plain_differences():
    rng = np.random.default_rng(1)
    base = rng.normal(size=SHAPE).astype(np.float32)
    target = base + 1e-2 * rng.normal(size=SHAPE).astype(np.float32)
    assert encode_exactly(stored(base), stored(target)).codec == "lossless"


def test_numbers_that_are_not_finite_come_back_with_their_bits():
    base, target = merged(DType.FLOAT32, 2)
    for place, word in ((5, 0x7FC00001), (7000, 0xFF800000), (7001, 0x80000000)):
        for tensor in (base, target):
            tensor.data[4 * place : 4 * place + 4] = word.to_bytes(4, "little")
        # The target's NaN has a payload of its own.
        target.data[20] ^= 2
    encoded = encode_exactly(base, target)
    assert encoded.codec == "refined"
    back = in_memory(encoded, base, "x", DType.FLOAT32, SHAPE)
    assert read(back) == read(target)


def test_damaged_factors_are_refused():
    base, target = merged(DType.FLOAT32, 2)
    encoded = encode_exactly(base, target)
    for part in encoded.parts:
        lazy = {
            p: part_in_memory(p, array[:-1] if p == part else array)
            for p, array in encoded.parts.items()
        }
        with pytest.raises(CheckpointError, match="refined change of tensor"):
            read(decoded("refined", encoded.parameters, lazy, base, "x", DType.FLOAT32, SHAPE))
    lazy = {part: part_in_memory(part, array) for part, array in encoded.parts.items()}
    with pytest.raises(CheckpointError, match="base"):
        decoded("refined", encoded.parameters, lazy, None, "x", DType.FLOAT32, SHAPE)
