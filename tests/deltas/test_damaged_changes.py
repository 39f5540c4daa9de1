"""Stored lossy changes that are damaged or hostile: one sentence, and no memory beyond the tensor's."""

from __future__ import annotations

import numpy as np
import pytest
from tests.deltas.stored_arrays import read, stored

from weightsmith.deltas.codecs import CodecChoice, Delta, decoded, encode
from weightsmith.deltas.codecs.codec import Encoded, part_in_memory
from weightsmith.errors import CheckpointError, NonFiniteError
from weightsmith.tensors.dtypes import DType

SHAPE = (40, 300)
EVERY = [
    CodecChoice("sign"),
    CodecChoice("sign", {"scales": "row"}),
    CodecChoice("sign2"),
    CodecChoice("ternary"),
    CodecChoice("lloyd2", {"scales": "row"}),
    CodecChoice("lloyd4"),
    CodecChoice("sparse", {"density": 0.1, "values": "bfloat16"}),
    CodecChoice("sparse", {"density": 0.1, "values": "lloyd2"}),
    CodecChoice("low_rank", {"rank": 3}),
    CodecChoice("banded", {"bands": [[2, 8], [10, 3], [5, 1]]}),
]


def base() -> object:
    return stored(np.zeros(SHAPE, np.float32))


def encoded(choice: CodecChoice) -> Encoded:
    change = np.random.default_rng(0).laplace(size=SHAPE).astype(np.float32)
    return encode(Delta(base(), stored(change)), choice)


def reading(codec: str, parameters, parts, known=None, shape=SHAPE, dtype=DType.FLOAT32) -> bytes:
    lazy = {part: part_in_memory(part, array) for part, array in parts.items()}
    return read(decoded(codec, parameters, lazy, known or base(), "x", dtype, shape))


@pytest.mark.parametrize("choice", EVERY, ids=str)
def test_missing_shorter_longer_and_retyped_parts_are_refused(choice):
    good = encoded(choice)
    reading(good.codec, good.parameters, good.parts)
    for part, array in good.parts.items():
        others = [array[:-1], np.concatenate([array, array[-1:]]), array[None]]
        others.append(array.astype(np.float32 if array.dtype == np.uint8 else np.uint8))
        for damaged in others:
            with pytest.raises(CheckpointError, match=rf"^The {good.codec} change of tensor 'x'"):
                reading(good.codec, good.parameters, {**good.parts, part: damaged})
        rest = {other: kept for other, kept in good.parts.items() if other != part}
        with pytest.raises(CheckpointError, match=f"has no part '{part}'"):
            reading(good.codec, good.parameters, rest)


@pytest.mark.parametrize("choice", EVERY, ids=str)
def test_numbers_that_are_not_finite_are_refused(choice):
    good = encoded(choice)
    for part, array in good.parts.items():
        if array.dtype.kind == "f":
            damaged = array.copy()
            damaged.reshape(-1)[-1] = np.nan
            with pytest.raises(CheckpointError, match="not finite"):
                reading(good.codec, good.parameters, {**good.parts, part: damaged})


@pytest.mark.parametrize("choice", EVERY, ids=str)
def test_flipped_bits_are_refused_or_decoded_but_raise_nothing_else(choice):
    good = encoded(choice)
    rng = np.random.default_rng(1)
    for part, array in good.parts.items():
        for _ in range(25):
            damaged = array.copy()
            raw = damaged.reshape(-1).view(np.uint8)
            raw[rng.integers(raw.size)] ^= 1 << rng.integers(8)
            try:
                data = reading(good.codec, good.parameters, {**good.parts, part: damaged})
            except (CheckpointError, NonFiniteError):
                continue
            assert len(data) == 4 * 40 * 300


@pytest.mark.parametrize("choice", EVERY, ids=str)
def test_a_base_that_does_not_fit_is_refused(choice):
    good = encoded(choice)
    other = stored(np.zeros((40, 299), np.float32))
    integers = stored(np.zeros(SHAPE, np.int32), DType.INT32)
    for known in (other, integers):
        with pytest.raises(CheckpointError, match="does not fit"):
            reading(good.codec, good.parameters, good.parts, known)
    lazy = {part: part_in_memory(part, array) for part, array in good.parts.items()}
    with pytest.raises(CheckpointError, match="base that is not there"):
        decoded(good.codec, good.parameters, lazy, None, "x", DType.FLOAT32, SHAPE)


@pytest.mark.parametrize(
    ("choice", "key", "values"),
    [
        (EVERY[0], "scales", [None, "column", 3, ["row"]]),
        (EVERY[4], "scales", [None, {}]),
        (EVERY[6], "values", [None, "lloyd2", "float8", 0]),
        (EVERY[8], "rank", [None, 0, 2, 10**12, 3.0, True, "3"]),
        (EVERY[9], "bands", [None, [], [[2, 8]], [[2, 8], [10, 3], [5, 5]], [[17, 8.0]], "2"]),
        (EVERY[9], "bands", [[[10**12, 1]], [[2, 8], [-10, 3], [25, 1]], [[1, 1]] * 1000]),
    ],
    ids=str,
)
def test_parameters_that_do_not_fit_the_parts_are_refused(choice, key, values):
    good = encoded(choice)
    for value in values:
        with pytest.raises(CheckpointError):
            reading(good.codec, {**good.parameters, key: value}, good.parts)


@pytest.mark.parametrize("shape", [(1 << 40, 300), (40, 1 << 40)])
@pytest.mark.parametrize("choice", EVERY, ids=str)
def test_a_huge_shape_is_refused_before_anything_of_its_size_is_made(choice, shape):
    good = encoded(choice)
    lazy = {part: part_in_memory(part, array) for part, array in good.parts.items()}
    with pytest.raises(CheckpointError):
        read(decoded(good.codec, good.parameters, lazy, base(), "x", DType.FLOAT32, shape), 0, 1)


def test_counts_and_positions_beyond_a_block_are_refused():
    good = encoded(CodecChoice("sparse", {"density": 0.1, "values": "lloyd2"}))
    for count in (1199, 1201, 12_001, 2**32 - 1):
        table = good.parts["table"].copy()
        table[0, 0] = count
        with pytest.raises(CheckpointError):
            reading("sparse", good.parameters, {**good.parts, "table": table})


def test_a_damaged_block_does_not_stop_others_from_being_read():
    # Damage is found where it is read, every time.
    rng = np.random.default_rng(2)
    change = rng.laplace(size=(1 << 20) + 4096).astype(np.float32)
    zeros = stored(np.zeros_like(change))
    good = encode(Delta(zeros, stored(change)), CodecChoice("lloyd4"))
    codes = good.parts["codes"].copy()
    codes[: good.parts["table"][0, 0]] = 0xFF
    parts = {**good.parts, "codes": codes}
    lazy = {part: part_in_memory(part, array) for part, array in parts.items()}
    found = decoded("lloyd4", good.parameters, lazy, zeros, "x", DType.FLOAT32, change.shape)
    for _ in range(2):
        with pytest.raises(CheckpointError, match="in block 0:"):
            read(found, 0, 10)
        assert len(read(found, 1 << 20, (1 << 20) + 10)) == 40
