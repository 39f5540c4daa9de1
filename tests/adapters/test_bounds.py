"""Dense and factored changes cut to a rank, an energy or an error, and what they say that it cost."""

from __future__ import annotations

import numpy as np
import pytest

from weightsmith.deltas.changes import LowRankChange
from weightsmith.errors import NonFiniteError, UsageError
from weightsmith.lora.algebra import spectrum
from weightsmith.lora.bounds import RankBound, truncate_matrix, truncate_spectrum

BOUNDS = [
    RankBound(),
    RankBound(rank=2),
    RankBound(energy=0.9),
    RankBound(error=0.3),
    RankBound(rank=1, energy=0.99),
]


def dense(change):
    return change.rows(0, change.shape[0])


@pytest.mark.parametrize("bound", BOUNDS, ids=str)
@pytest.mark.parametrize("size", [1.0, 1e-170, 1e150])
def test_dense_and_factored_cuts_of_one_change_are_the_same(bound, size):
    rng = np.random.default_rng(0)
    change = LowRankChange(rng.normal(size=(9, 4)), rng.normal(size=(4, 7)), size)
    factored = truncate_spectrum(spectrum(change), bound)
    whole = truncate_matrix(dense(change), bound, "w")
    assert whole.change.rank == factored.change.rank
    assert np.allclose(dense(whole.change) / size, dense(factored.change) / size, atol=1e-10)
    assert whole.lost == pytest.approx(factored.lost, abs=1e-9)
    assert whole.size == pytest.approx(factored.size, rel=1e-9, abs=0.0)
    off = np.linalg.norm((dense(whole.change) - dense(change)) / size)
    assert whole.lost == pytest.approx(off / np.linalg.norm(dense(change) / size), abs=1e-9)


def test_of_a_large_matrix_only_the_directions_that_are_wanted_are_sought():
    rng = np.random.default_rng(1)
    left, right = (np.linalg.qr(rng.normal(size=(1100, 60)))[0] for _ in range(2))
    values = 0.5 ** np.arange(60)
    matrix = (left * values) @ right.T
    found = truncate_matrix(matrix, RankBound(rank=8), "w")
    assert found.change.rank == 8
    best = (left[:, :8] * values[:8]) @ right[:, :8].T
    assert np.allclose(dense(found.change), best, atol=1e-8)
    off = np.linalg.norm(dense(found.change) - matrix) / np.linalg.norm(matrix)
    assert found.lost == pytest.approx(off, rel=1e-6)
    again = truncate_matrix(matrix, RankBound(rank=8), "w")
    assert np.array_equal(again.change.left, found.change.left)


def test_zeros_are_cut_to_zeros():
    found = truncate_matrix(np.zeros((3, 4)), RankBound(rank=2), "w")
    assert (found.change.rank, found.lost, found.size) == (1, 0.0, 0.0)
    assert not dense(found.change).any()


def test_what_has_no_meaning_is_refused():
    with pytest.raises(NonFiniteError, match="'w' holds NaN"):
        truncate_matrix(np.full((2, 2), np.nan), RankBound(), "w")
    with pytest.raises(UsageError, match="rank of 0"):
        truncate_matrix(np.ones((2, 2)), RankBound(rank=0), "w")
