"""Singular directions: the nearest change of a rank, and bands that take the most error away with their bits."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from tests.deltas.stored_arrays import floats, read, stored

from weightsmith.deltas.codecs import (
    CodecChoice,
    Delta,
    Encoded,
    choices,
    encode,
    in_memory,
    measured_error,
)
from weightsmith.deltas.codecs.banded import bands_for
from weightsmith.deltas.codecs.directions import leading_directions
from weightsmith.tensors.dtypes import DType


def with_spectrum(shape: tuple[int, int], strengths: np.ndarray, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.normal(size=(shape[0], len(strengths))))[0]
    right = np.linalg.qr(rng.normal(size=(shape[1], len(strengths))))[0]
    return ((left * strengths) @ right.T).astype(np.float32)


def pair(change: np.ndarray) -> tuple:
    return stored(np.zeros_like(change)), stored(change)


@pytest.mark.parametrize("rank", [1, 4, 20, 48])
def test_the_error_is_that_of_eckart_and_young(rank):
    strengths = 1 / np.arange(1, 49)
    base, target = pair(with_spectrum((48, 130), strengths))
    encoded = encode(Delta(base, target), CodecChoice("low_rank", {"rank": rank}))
    left_out = math.sqrt((strengths[rank:] ** 2).sum() / (strengths**2).sum())
    assert measured_error(encoded, base, target) == pytest.approx(left_out, rel=1e-3, abs=5e-4)
    assert encoded.nbytes == 2 * rank * (48 + 130) + 4 * rank


def test_tiny_and_huge_changes_lose_nothing_to_float16():
    change = with_spectrum((40, 60), np.array([1.0, 0.5]))
    for scale in (2.0**-100, 2.0**100):
        base, target = pair(change * np.float32(scale))
        encoded = encode(Delta(base, target), CodecChoice("low_rank", {"rank": 2}))
        assert measured_error(encoded, base, target) < 1e-3


def test_kernels_are_taken_as_outputs_by_all_others_and_experts_below_one_another():
    change = with_spectrum((32, 3 * 3 * 8), np.array([1.0]))
    for shape, rank_one in (((32, 8, 3, 3), True), ((4, 8, 72), True), ((8, 4, 72), True)):
        base, target = pair(change.reshape(shape))
        encoded = encode(Delta(base, target), CodecChoice("low_rank", {"rank": 1}))
        assert (measured_error(encoded, base, target) < 1e-3) is rank_one
        assert encoded.nbytes == 2 * (32 + 72) + 4


def test_the_sketch_of_a_large_matrix_finds_its_leading_directions():
    shape = (1100, 1040)
    strengths = np.concatenate([[8.0, 4.0, 2.0, 1.0], np.full(300, 0.02)])
    matrix = with_spectrum(shape, strengths)
    asked: list[tuple[int, int]] = []

    def rows(first: int, last: int) -> np.ndarray:
        asked.append((first, last))
        return matrix[first:last]

    found = leading_directions(rows, shape)
    assert len(found.values) == 1040 // 4
    assert max(last - first for first, last in asked) < 1100
    np.testing.assert_allclose(found.values[:4], strengths[:4], rtol=1e-5)
    for factor in (found.left, found.right.T):
        np.testing.assert_allclose(factor.T @ factor, np.eye(260), atol=1e-10)
    product = (found.left[:, :4] * found.values[:4]) @ found.right[:4]
    left_out = np.linalg.norm(strengths[4:])
    assert np.linalg.norm(matrix - product) == pytest.approx(left_out, rel=1e-3)


def test_bands_spend_a_budget_as_well_as_any_choice_of_bits():
    strengths = np.array([3.0, 1.5, 1.4, 0.2])
    distortion = {0: 1.0, 1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497, 8: 1e-4}
    # So many numbers that the bits of strengths and codebooks do not count beside them.
    cost = 10**6

    def lost(bits) -> float:
        kept = np.array([(1 - distortion[b]) ** 2 for b in bits])
        return float((strengths**2 * (1 - kept)).sum())

    for budget in range(1, 33):
        bits = [0] * 4
        for band in bands_for(strengths, cost, budget * cost + 5000):
            bits[band.start : band.stop] = [band.bits] * (band.stop - band.start)
        assert sum(bits) <= budget
        assert bits == sorted(bits, reverse=True)
        # No other choice of no more bits loses less.
        best = min(
            lost(other)
            for other in itertools.product(distortion, repeat=4)
            if sum(other) <= sum(bits)
        )
        assert lost(bits) == pytest.approx(best)


def test_directions_without_strength_get_no_bits():
    bands = bands_for(np.array([2.0, 0.0, 0.0]), 1000, 10**6)
    assert [(band.start, band.stop, band.bits) for band in bands] == [(0, 1, 8)]


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_a_band_keeps_as_much_as_its_codebooks_do(bits):
    rng = np.random.default_rng(1)
    base, target = pair(rng.normal(size=(256, 300)).astype(np.float32))
    encoded = encode(Delta(base, target), CodecChoice("banded", {"bands": [[256, bits]]}))
    distortion = {1: 0.3634, 2: 0.1175, 3: 0.03454, 4: 0.009497, 8: 1e-4}[bits]
    expected = math.sqrt(1 - (1 - distortion) ** 2)
    assert measured_error(encoded, base, target) == pytest.approx(expected, rel=0.03, abs=0.01)
    assert encoded.nbytes * 8 <= bits * 256 * (256 + 300) + 32 * (256 + 2 * 16) + 64


def test_bands_beat_factors_of_one_precision_at_equal_bytes():
    base, target = pair(with_spectrum((256, 256), np.arange(1, 257) ** -0.5))
    delta = Delta(base, target)
    plain = encode(delta, CodecChoice("low_rank", {"rank": 16}))
    banded = encode(delta, CodecChoice("banded", {"bits": 16 * 16 * 512 / 256**2}))
    assert banded.nbytes <= plain.nbytes
    assert measured_error(banded, base, target) < 0.85 * measured_error(plain, base, target)


def test_choices_stay_within_half_of_sixteen_bits():
    base, target = pair(with_spectrum((64, 96), np.ones(64)))
    listed = choices(Delta(base, target), ["low_rank", "banded"])
    ranks = [c.settings["rank"] for c in listed if c.codec == "low_rank"]
    assert ranks == [1, 4, 16]
    assert [c.settings["bits"] for c in listed if c.codec == "banded"] == [
        0.125,
        0.25,
        0.5,
        1.0,
        2.0,
    ]


def test_a_change_of_a_rank_is_offered_at_that_rank_and_bits_are_not_spent_beyond_it():
    base, target = pair(with_spectrum((120, 200), np.array([3.0, 2.0, 1.0, 0.5, 0.2])))
    delta = Delta(base, target)
    ranks = [choice.settings["rank"] for choice in choices(delta, ["low_rank"])]
    assert ranks == [1, 4, 5]
    assert measured_error(encode(delta, CodecChoice("low_rank", {"rank": 5})), base, target) < 1e-3
    banded = encode(delta, CodecChoice("banded", {"bits": 4.0}))
    assert banded.parameters["bands"] == [[5, 8]]


def test_the_sum_of_directions_is_what_is_decoded():
    change = with_spectrum((30, 50), np.array([1.0, 0.3]))
    base, target = pair(change)
    encoded = encode(Delta(base, target), CodecChoice("low_rank", {"rank": 2}))
    left, right = (encoded.parts[side].astype(np.float64) for side in ("left", "right"))
    expected = (left * encoded.parts["strengths"].astype(np.float64)) @ right
    found = floats(in_memory(encoded, base, "x", DType.FLOAT32, (30, 50)))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=2.0**-22 * np.abs(expected).max())


def test_no_order_of_sums_changes_a_bit():
    # The product is decoded for the factors as they are and with their directions in another order.
    rng = np.random.default_rng(3)
    base, target = pair(rng.normal(size=(96, 128)).astype(np.float32))
    encoded = encode(
        Delta(base, target), CodecChoice("low_rank", {"rank": 90, "numbers": "float32"})
    )
    order = rng.permutation(90)
    parts = {
        "left": encoded.parts["left"][:, order],
        "strengths": encoded.parts["strengths"][order],
        "right": encoded.parts["right"][order],
    }
    twin = Encoded("low_rank", encoded.parameters, parts)
    one, two = (in_memory(e, base, "x", DType.FLOAT32, (96, 128)) for e in (encoded, twin))
    assert read(one) == read(two)
