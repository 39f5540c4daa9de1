"""Packed codes and kept positions: every one comes back, in as few bytes as theory says, and damage is seen."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightsmith.deltas.codecs.codes import packed_codes, plain_bytes, unpacked_codes
from weightsmith.deltas.codecs.positions import packed_positions, unpacked_positions

LEVELS = (2, 3, 4, 8, 16, 256)


def bytes_of(piece: bytes) -> np.ndarray:
    return np.frombuffer(piece, np.uint8)


@pytest.mark.parametrize("levels", LEVELS)
@given(st.data())
@settings(max_examples=25)
def test_codes_of_any_number_and_width_come_back(levels, data):
    count = data.draw(st.integers(0, 100))
    skew = data.draw(st.sampled_from([1, 5]))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    codes = (levels * rng.random(count) ** skew).astype(np.uint8)
    piece = packed_codes(codes, levels)
    assert len(piece) <= plain_bytes(count, levels)
    np.testing.assert_array_equal(unpacked_codes(bytes_of(piece), count, levels), codes)


@pytest.mark.parametrize(("levels", "bits"), [(2, 1), (3, 1.6), (4, 2), (8, 3), (16, 4), (256, 8)])
def test_evenly_spread_codes_take_their_bits_and_no_more(levels, bits):
    codes = np.random.default_rng(0).integers(0, levels, 40_000).astype(np.uint8)
    assert len(packed_codes(codes, levels)) * 8 == pytest.approx(bits * codes.size, rel=0.01)


@pytest.mark.parametrize("levels", [3, 4, 8, 16])
def test_uneven_codes_come_near_their_entropy(levels):
    shares = 0.5 ** np.arange(1, levels + 1)
    shares /= shares.sum()
    codes = np.random.default_rng(1).choice(levels, 200_000, p=shares).astype(np.uint8)
    entropy = -(shares * np.log2(shares)).sum()
    assert len(packed_codes(codes, levels)) * 8 == pytest.approx(entropy * codes.size, rel=0.05)


def test_one_bit_codes_are_the_bits_of_masks():
    bits = np.random.default_rng(2).integers(0, 2, 1003).astype(np.uint8)
    assert packed_codes(bits, 2) == np.packbits(bits, bitorder="little").tobytes()


@pytest.mark.parametrize("levels", [3, 4, 8, 16])
def test_damaged_codes_are_seen(levels):
    codes = np.zeros(4000, np.uint8)
    piece = bytes_of(packed_codes(codes, levels))
    assert unpacked_codes(piece[:-1], 4000, levels) is None
    assert unpacked_codes(piece, 3000, levels) is None
    assert unpacked_codes(np.full(piece.size, 0xFF, np.uint8), 4000, levels) is None


def test_a_byte_that_holds_no_five_ternary_codes_is_damage():
    plain = np.full(plain_bytes(10, 3), 243, np.uint8)
    assert unpacked_codes(plain, 10, 3) is None
    plain[:] = 242
    assert unpacked_codes(plain, 10, 3).tolist() == [2] * 10


@given(st.data())
@settings(max_examples=80)
def test_positions_come_back_however_dense(data):
    count = data.draw(st.sampled_from([1, 7, 8, 255, 256, 257, 3000]))
    share = data.draw(st.sampled_from([0.0, 0.001, 0.1, 0.39, 0.41, 1.0]))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    kept = np.flatnonzero(rng.random(count) < share)
    piece = packed_positions(kept, count)
    assert len(piece) <= -(-count // 8)
    np.testing.assert_array_equal(unpacked_positions(bytes_of(piece), kept.size, count), kept)


@pytest.mark.parametrize("gap", [254, 255, 256, 509, 510, 511, 70_000])
def test_gaps_around_a_full_byte_come_back(gap):
    kept = np.array([gap, 2 * gap + 1, 2 * gap + 2])
    count = 3 * gap + 500
    piece = packed_positions(kept, count)
    np.testing.assert_array_equal(unpacked_positions(bytes_of(piece), 3, count), kept)


@pytest.mark.parametrize("share", [0.5, 0.2, 0.1, 0.05, 0.02, 0.01])
def test_positions_cost_little_more_than_their_entropy(share):
    count = 1 << 20
    kept = np.flatnonzero(np.random.default_rng(3).random(count) < share)
    entropy = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    assert len(packed_positions(kept, count)) * 8 / count == pytest.approx(entropy, rel=0.025)


def test_damaged_positions_are_seen():
    kept = np.arange(0, 3000, 30)
    piece = bytes_of(packed_positions(kept, 3000))
    assert unpacked_positions(piece, 99, 3000) is None
    assert unpacked_positions(piece, 101, 3000) is None
    # The last position would lie beyond the block.
    assert unpacked_positions(piece, 100, 2900) is None
    assert unpacked_positions(piece[:-2], 100, 3000) is None
    bitmap = np.full(375, 0xFF, np.uint8)
    assert unpacked_positions(bitmap, 3000, 3000).size == 3000
    # A bit beyond the last element.
    assert unpacked_positions(np.array([0x80], np.uint8), 1, 7) is None
