"""One bit per element: packed on the way out, unpacked on the way in, whatever the sizes and cuts."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightsmith.deltas import BitPacker, DecodedTensor, PackedBits, VerifiedTensor
from weightsmith.deltas.bits import packed_bytes
from weightsmith.errors import CheckpointError
from weightsmith.graph.graph import source, where
from weightsmith.tensors.digests import digest_tensor
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.memory import MemoryTensor

ONE = 0x38  # 1.0 in float8_e4m3fn


def packed_by(bits: np.ndarray, cuts: list[int], order: list[int]) -> bytes:
    """The bytes that a packer writes when it is given these runs in this order."""
    out = np.full(packed_bytes(len(bits)), 0xAA, np.uint8)

    def write(first: int, data: memoryview) -> None:
        out[first : first + len(data)] = np.frombuffer(data, np.uint8)

    packer = BitPacker(len(bits), write)
    edges = [0, *cuts, len(bits)]
    runs = list(itertools.pairwise(edges))
    for i in order:
        start, stop = runs[i]
        if start < stop:
            packer.write(start, (bits[start:stop] * ONE).astype(np.uint8).data)
    return out.tobytes()


@given(st.data())
@settings(max_examples=60)
def test_masks_are_packed_and_unpacked_exactly_however_they_are_cut(data):
    n = data.draw(st.integers(1, 70))
    bits = np.random.default_rng(data.draw(st.integers(0, 99))).random(n) < 0.5
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=4)))
    order = data.draw(st.permutations(range(len(cuts) + 1)))
    packed = packed_by(bits, cuts, list(order))
    assert packed == np.packbits(bits, bitorder="little").tobytes()
    stored = MemoryTensor("m", DType.UINT8, (len(packed),), bytearray(packed))
    mask = PackedBits("m", (n,), stored)
    start = data.draw(st.integers(0, n))
    stop = data.draw(st.integers(start, n))
    out = bytearray(stop - start)
    mask.read_into(start, stop, memoryview(out))
    np.testing.assert_array_equal(np.frombuffer(out, np.uint8) == ONE, bits[start:stop])


@pytest.mark.parametrize("n", range(1, 18))
def test_the_padding_of_the_last_byte_is_zero_and_is_not_read(n):
    # The reference packs without keeping the length and unpacks 8 elements per byte.
    packed = packed_by(np.ones(n, bool), [], [0])
    assert len(packed) == -(-n // 8)
    assert np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little").sum() == n
    damaged = bytearray(packed)
    damaged[-1] |= 0xFF & ~((1 << (n % 8 or 8)) - 1)
    mask = PackedBits("m", (n,), MemoryTensor("m", DType.UINT8, (len(packed),), damaged))
    out = bytearray(n)
    mask.read_into(0, n, memoryview(out))
    assert out == bytes([ONE] * n)


def test_tiles_that_share_a_byte_may_be_written_by_several_threads():
    bits = np.random.default_rng(0).random(1003) < 0.5
    out = np.zeros(packed_bytes(len(bits)), np.uint8)

    def write(first, data):
        out[first : first + len(data)] = np.frombuffer(data, np.uint8)

    packer = BitPacker(len(bits), write)
    tiles = [(s, min(s + 17, len(bits))) for s in range(0, len(bits), 17)]

    def work(own):
        for start, stop in own:
            packer.write(start, (bits[start:stop] * ONE).astype(np.uint8).data)

    threads = [threading.Thread(target=work, args=(tiles[i::4],)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(np.unpackbits(out, bitorder="little", count=len(bits)), bits)


def memory(array: np.ndarray, dtype: DType) -> MemoryTensor:
    return MemoryTensor("x", dtype, array.shape, bytearray(array.tobytes()))


def test_a_decoded_tensor_gives_any_range_with_the_rounding_of_a_merge():
    rng = np.random.default_rng(0)
    n = 300_001
    base, shared = rng.normal(size=(2, n)).astype(np.float32)
    bits = rng.random(n) < 0.5
    packed = np.packbits(bits, bitorder="little")
    mask = PackedBits("m", (n,), memory(packed, DType.UINT8))
    scale = np.float32(0.37)

    def graph(s):
        return source(0) + where(source(2) > 0.0, source(1), 0.0) * s

    decoded = DecodedTensor(
        "x",
        DType.FLOAT16,
        (n,),
        (memory(base, DType.FLOAT32), memory(shared, DType.FLOAT32), mask),
        graph,
        (memory(np.array(scale), DType.FLOAT32),),
    )
    expected = (base + np.where(bits, shared, np.float32(0)) * scale).astype(np.float16)
    for start, stop in [(0, n), (1, 2), (7, 270_000), (n, n)]:
        out = bytearray((stop - start) * 2)
        decoded.read_into(start, stop, memoryview(out))
        np.testing.assert_array_equal(np.frombuffer(out, np.float16), expected[start:stop])
    assert (decoded.numel, decoded.nbytes) == (n, 2 * n)


def test_a_verified_tensor_refuses_other_bytes_than_those_on_record():
    array = np.arange(6, dtype=np.float32)
    digest = digest_tensor(memory(array, DType.FLOAT32))
    out = bytearray(8)
    VerifiedTensor(memory(array, DType.FLOAT32), digest, "give the base").read_into(
        2, 4, memoryview(out)
    )
    assert np.frombuffer(out, np.float32).tolist() == [2.0, 3.0]
    array[5] += 1
    other = VerifiedTensor(memory(array, DType.FLOAT32), digest, "give the base")
    for _ in range(2):
        with pytest.raises(CheckpointError, match="give the base"):
            other.read_into(0, 1, memoryview(bytearray(4)))
