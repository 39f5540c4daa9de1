"""Exact codecs: every bit comes back, in any range, for every dtype and pattern, in few bytes for small changes."""

from __future__ import annotations

import concurrent.futures
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.deltas.stored_arrays import WORDS, from_bfloat16, read, stored, to_bfloat16

from weightsmith.deltas.codecs import decoded, encode_exactly, in_memory
from weightsmith.deltas.codecs.codec import part_in_memory
from weightsmith.deltas.codecs.held import BLOCK
from weightsmith.deltas.codecs.planes import joined_planes, plane_pieces
from weightsmith.deltas.rounded import RoundedTensor
from weightsmith.errors import CheckpointError
from weightsmith.tensors.dtypes import DType

ALL = list(DType)


def words_of(data: st.DataObject, dtype: DType, count: int) -> np.ndarray:
    """Any bit patterns, the awkward ones often."""
    lanes = 2 if dtype is DType.COMPLEX64 else 1
    size = dtype.itemsize // lanes
    bits = 8 * size
    extremes = [0, 1, (1 << bits) - 1, 1 << bits - 1, (1 << bits - 1) - 1]
    infinities = [0x7C00, 0xFC00, 0x7F80, 0xFF80, 0x7F800000, 0xFF800001, 0x7FF0 << 48, 0x7E, 0xFF]
    awkward = extremes + [value for value in infinities if value < 1 << bits]
    number = st.one_of(st.sampled_from(awkward), st.integers(0, (1 << bits) - 1))
    drawn = data.draw(st.lists(number, min_size=count * lanes, max_size=count * lanes))
    return np.array(drawn, WORDS[size]).view(WORDS.get(dtype.itemsize, np.uint64))


@pytest.mark.parametrize("dtype", ALL, ids=str)
@given(data=st.data())
@settings(max_examples=12)
def test_every_pattern_of_every_dtype_comes_back(dtype, data):
    count = data.draw(st.integers(0, 40))
    base, target = (words_of(data, dtype, count) for _ in range(2))
    encoded = encode_exactly(stored(base, dtype), stored(target, dtype))
    back = in_memory(encoded, stored(base, dtype), "x", dtype, target.shape)
    start = data.draw(st.integers(0, count))
    stop = data.draw(st.integers(start, count))
    assert (back.dtype, back.shape) == (dtype, target.shape)
    assert read(back, start, stop) == target[start:stop].tobytes()
    alone = encode_exactly(None, stored(target, dtype))
    assert alone.codec == "whole"
    assert read(in_memory(alone, None, "x", dtype, target.shape)) == target.tobytes()


@pytest.mark.parametrize("dtype", [DType.BFLOAT16, DType.FLOAT16], ids=str)
def test_all_65536_patterns_of_a_short_float_come_back_against_any_other(dtype):
    base = np.arange(1 << 16, dtype=np.uint16)
    target = np.random.default_rng(0).permutation(base)
    encoded = encode_exactly(stored(base, dtype), stored(target, dtype))
    back = in_memory(encoded, stored(base, dtype), "x", dtype, base.shape)
    assert read(back) == target.tobytes()


def test_an_identical_tensor_takes_no_bytes_and_minus_zero_is_another_number():
    base = np.array([[0.0, 1.0, np.nan]], np.float32)
    same = encode_exactly(stored(base), stored(base.copy()))
    assert (same.codec, same.nbytes, dict(same.parts)) == ("same", 0, {})
    target = base.copy()
    target[0, 0] = -0.0
    other = encode_exactly(stored(base), stored(target))
    assert other.codec == "lossless"
    assert read(in_memory(other, stored(base), "x", DType.FLOAT32, (1, 3))) == target.tobytes()


def test_a_base_under_another_name_still_is_the_same_and_comes_back_under_the_new_one():
    base = stored(np.ones((2, 3), np.float32), name="old")
    encoded = encode_exactly(base, stored(np.ones((2, 3), np.float32), name="new"))
    back = in_memory(encoded, base, "new", DType.FLOAT32, (2, 3))
    assert (encoded.codec, back.name, read(back)) == ("same", "new", read(base))


def entropy(base: np.ndarray, target: np.ndarray) -> float:
    """The order-0 entropy of differences of 16-bit floats in the order of values, as a share of their bits."""
    ordered = [
        np.where(words >= 1 << 15, (1 << 16) - 1 - words.astype(int), words.astype(int) + (1 << 15))
        for words in (base, target)
    ]
    counts = np.unique(ordered[1] - ordered[0], return_counts=True)[1]
    shares = counts / counts.sum()
    return float(-(shares * np.log2(shares)).sum() / 16)


@pytest.mark.parametrize(
    ("strength", "share"), [(1e-4, 0.023), (1e-3, 0.12), (1e-2, 0.295), (1e-1, 0.52)]
)
def test_bytes_of_a_bfloat16_change_come_near_the_entropy(strength, share):
    rng = np.random.default_rng(3)
    base = to_bfloat16(0.02 * rng.normal(size=1 << 20))
    moved = from_bfloat16(base) + 0.02 * strength * rng.normal(size=base.size)
    target = to_bfloat16(moved)
    encoded = encode_exactly(stored(base, DType.BFLOAT16), stored(target, DType.BFLOAT16))
    found = encoded.nbytes / target.nbytes
    assert found == pytest.approx(entropy(base, target), rel=0.05)
    # What runs of zeros alone come to.
    assert found < share


def test_weights_alone_take_two_thirds_of_their_bytes():
    rng = np.random.default_rng(4)
    target = stored(to_bfloat16(0.02 * rng.normal(size=1 << 20)), DType.BFLOAT16)
    encoded = encode_exactly(None, target)
    assert encoded.nbytes / target.nbytes == pytest.approx(0.664, abs=0.005)


def test_blocks_are_read_by_themselves_and_threads_do_not_change_bytes():
    rng = np.random.default_rng(5)
    count = 2 * BLOCK + 12_345
    base = rng.integers(0, 1 << 16, count).astype(np.uint16)
    target = base.copy()
    target[BLOCK:] += rng.integers(0, 3, count - BLOCK).astype(np.uint16)
    tensors = stored(base, DType.BFLOAT16), stored(target, DType.BFLOAT16)
    encoded = encode_exactly(*tensors)
    twin = encode_exactly(*tensors, threads=3)
    for part, array in encoded.parts.items():
        np.testing.assert_array_equal(array, twin.parts[part])
    # The first block is unchanged, so nothing of it is stored.
    assert encoded.parts["table"].shape == (3, 2)
    assert not encoded.parts["table"][0].any()
    back = in_memory(encoded, tensors[0], "x", DType.BFLOAT16, target.shape)
    ranges = [
        (0, 0),
        (BLOCK - 3, BLOCK + 3),
        (2 * BLOCK - 1, count),
        (5, 2 * BLOCK + 7),
        (0, count),
    ]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda edges: read(back, *edges), ranges * 3))
    for (start, stop), data in zip(ranges * 3, found, strict=True):
        assert data == target[start:stop].tobytes()


def test_a_table_with_more_or_fewer_rows_is_a_change_of_those_that_are_there():
    rng = np.random.default_rng(6)
    base = rng.normal(size=(50, 64)).astype(np.float32)
    for rows in (40, 60):
        target = np.zeros((rows, 64), np.float32)
        target[: min(rows, 50)] = base[:rows]
        target[50:] = rng.normal(size=(max(rows - 50, 0), 64))
        encoded = encode_exactly(stored(base), stored(target))
        assert encoded.codec == "lossless"
        assert encoded.nbytes < 1.1 * max(rows - 50, 0) * 64 * 4 + 100
        back = in_memory(encoded, stored(base), "x", DType.FLOAT32, target.shape)
        assert read(back) == target.tobytes()


def test_rounding_to_another_dtype_knows_one_nan():
    words = np.array([0x7F800001, 0xFFFFFFFF, 0x3F808000, 0x7F7FFFFF, 0x80000000], np.uint32)
    base = stored(words.view(np.float32))
    rounded = RoundedTensor(base, DType.BFLOAT16)
    # To the even one of two neighbours, and beyond the largest to infinity.
    assert read(rounded) == np.array([0x7FC0, 0x7FC0, 0x3F80, 0x7F80, 0x8000], np.uint16).tobytes()
    assert (rounded.shape, rounded.nbytes) == ((5,), 10)
    double = RoundedTensor(base, DType.FLOAT64)
    assert read(double, 0, 2) == np.array([0x7FF8 << 48] * 2, np.uint64).tobytes()


@pytest.mark.parametrize(
    "base",
    [
        stored(np.zeros(6, np.int32), DType.INT32),
        stored(np.zeros(6, np.float16), DType.FLOAT16),
        stored(np.zeros((3, 2), np.float32)),
        None,
    ],
)
def test_what_no_base_fits_is_stored_whole(base):
    target = stored(np.arange(6, dtype=np.float32))
    encoded = encode_exactly(base, target)
    assert encoded.codec == "whole"
    assert read(in_memory(encoded, None, "x", DType.FLOAT32, (6,))) == read(target)


def test_scalars_and_tensors_without_elements_have_a_place():
    scalar = stored(np.array(2.5, np.float32))
    for target, base in ((scalar, None), (scalar, stored(np.array(2.0, np.float32)))):
        encoded = encode_exactly(base, target)
        assert read(in_memory(encoded, base, "x", DType.FLOAT32, ())) == read(target)
    empty = stored(np.zeros((0, 3), np.float32))
    assert encode_exactly(empty, empty).codec == "same"
    alone = encode_exactly(None, empty)
    assert (alone.nbytes, alone.parts["table"].shape) == (0, (0, 4))
    assert read(in_memory(alone, None, "x", DType.FLOAT32, (0, 3))) == b""


def test_close_numbers_of_either_sign_differ_by_little():
    # The order of values runs through zero: the smallest numbers of either sign are neighbours, -0 and 0 too.
    values = np.array([-1.0, -1e-45, -0.0, 0.0, 1e-45, 1.0], np.float32)
    base, target = values[:-1], values[1:]
    small = encode_exactly(stored(base[1:4]), stored(target[1:4]))
    planes = small.parts["table"][0]
    assert planes.tolist() == [4, 0, 0, 0]
    assert small.parts["planes"].tolist() == [0, 2, 2, 2]


@pytest.mark.parametrize(
    "damage", ["shorter", "longer", "table", "limit", "bytes", "dtype", "gone"]
)
def test_damaged_parts_are_refused_in_a_sentence(damage):
    rng = np.random.default_rng(8)
    base = to_bfloat16(rng.normal(size=5000))
    target = to_bfloat16(from_bfloat16(base) * 1.01)
    encoded = encode_exactly(stored(base, DType.BFLOAT16), stored(target, DType.BFLOAT16))
    parts = {part: array.copy() for part, array in encoded.parts.items()}
    if damage == "shorter":
        parts["planes"] = parts["planes"][:-1]
    elif damage == "longer":
        parts["planes"] = np.append(parts["planes"], np.uint8(0))
    elif damage == "table":
        parts["table"] = np.concatenate([parts["table"], parts["table"]])
    elif damage == "limit":
        parts["table"] = np.array([[0, parts["planes"].size]], np.uint32) + np.uint32([2**31, 0])
    elif damage == "bytes":
        parts["planes"][: parts["table"][0, 0]] = 0xFF
    elif damage == "dtype":
        parts["table"] = parts["table"].astype(np.float32)
    else:
        del parts["table"]
    lazy = {part: part_in_memory(part, array) for part, array in parts.items()}
    with pytest.raises(CheckpointError, match=r"lossless change of tensor 'x'.*damaged"):
        read(
            decoded(
                "lossless", {}, lazy, stored(base, DType.BFLOAT16), "x", DType.BFLOAT16, (5000,)
            )
        )


def test_a_hostile_stream_makes_no_more_bytes_than_it_may():
    import zlib

    # A megabyte of zeros in a kilobyte, where 5000 bytes are due.
    machine = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = machine.compress(bytes(1 << 20)) + machine.flush()
    stream = np.frombuffer(b"\x01" + bomb, np.uint8)
    parts = {"planes": stream, "table": np.array([[stream.size, 0]], np.uint32)}
    lazy = {part: part_in_memory(part, array) for part, array in parts.items()}
    back = decoded("whole", {}, lazy, None, "x", DType.BFLOAT16, (5000,))
    with pytest.raises(CheckpointError, match="cannot be decompressed in block 0"):
        read(back)
    # A shape that no table covers is refused before anything of its size is made.
    with pytest.raises(CheckpointError, match="part 'table'"):
        decoded("whole", {}, lazy, None, "x", DType.BFLOAT16, (1 << 60,))


@pytest.mark.parametrize("codec", ["same", "lossless"])
def test_a_missing_or_another_base_is_refused(codec):
    parts = {
        "planes": part_in_memory("planes", np.zeros(0, np.uint8)),
        "table": part_in_memory("table", np.zeros((1, 4), np.uint32)),
    }
    for base in (
        None,
        stored(np.zeros((2, 3), np.float32)),
        stored(np.zeros(6, np.uint32), DType.INT32),
    ):
        with pytest.raises(CheckpointError, match="base"):
            decoded(codec, {}, parts, base, "x", DType.FLOAT32, (6,))


def test_an_unknown_codec_is_named():
    with pytest.raises(CheckpointError, match=r"'zpaq', which is unknown; the known ones are same"):
        decoded("zpaq", {}, {}, None, "x", DType.FLOAT32, (1,))


def test_wide_floats_of_a_short_past_leave_most_of_their_planes_out():
    base = from_bfloat16(to_bfloat16(np.random.default_rng(9).normal(size=1 << 16)))
    encoded = encode_exactly(None, stored(base))
    # Only the planes of exponent, sign and the seven fraction bits hold anything: the share of bfloat16, halved.
    assert encoded.nbytes / base.nbytes == pytest.approx(0.664 / 2, abs=0.02)
    assert math.prod(encoded.parts["table"].shape) == 4


class Watched:
    """A stored tensor that notes the most elements that were read from it at once."""

    def __init__(self, array: np.ndarray) -> None:
        self._stored = stored(array)
        self.most = 0

    def __getattr__(self, name: str):
        return getattr(self._stored, name)

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        self.most = max(self.most, stop - start)
        self._stored.read_into(start, stop, buffer)


def test_no_more_than_a_block_is_read_at_once():
    rng = np.random.default_rng(10)
    base = rng.normal(size=(3000, 1000)).astype(np.float32)
    factors = rng.normal(size=(3000, 2)), rng.normal(size=(2, 1000))
    tensors = Watched(base), Watched(base + 0.1 * (factors[0] @ factors[1]).astype(np.float32))
    encoded = encode_exactly(*tensors)
    assert encoded.codec == "refined"
    back = in_memory(encoded, tensors[0], "x", DType.FLOAT32, base.shape)
    assert read(back) == read(tensors[1]._stored)
    assert max(tensor.most for tensor in tensors) <= BLOCK


@pytest.mark.parametrize(("share", "tag"), [(0.0, None), (0.001, 1), (0.1, 2), (0.6, 1), (1.0, 0)])
def test_each_plane_takes_the_form_that_suits_it(share, tag):
    rng = np.random.default_rng(11)
    if share == 0.001:
        # Zeros in long runs.
        plane = np.repeat(rng.integers(0, 3, 100), 100).astype(np.uint8)
    else:
        values = rng.integers(0, 256 if share == 1 else 8, 10_000)
        plane = np.where(rng.random(10_000) < share, values, 0).astype(np.uint8)
    (piece,) = plane_pieces(plane)
    assert (piece[0] if piece else None) == tag
    (same,) = (joined_planes([np.frombuffer(piece, np.uint8)], plane.size, 1),)
    np.testing.assert_array_equal(same, plane)


def test_planes_that_are_damaged_are_seen():
    rng = np.random.default_rng(12)
    plane = np.where(rng.random(5000) < 0.1, rng.integers(1, 9, 5000), 0).astype(np.uint8)
    good = np.frombuffer(plane_pieces(plane)[0], np.uint8)
    assert good[0] == 2
    for at, value in ((0, 3), (0, 1), (0, 0), (1, 255), (3, 255), (4, 255), (5, 0), (8, 255)):
        damaged = good.copy()
        damaged[at] = value
        assert joined_planes([damaged], 5000, 1) is None
    for cut in (1, 5, 9, 200, good.size - 1):
        assert joined_planes([good[:cut]], 5000, 1) is None
