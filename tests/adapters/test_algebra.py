"""Changes of low rank summed, measured and truncated in factored form, against the same done on dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightsmith.deltas.changes import Full, Hadamard, Kronecker, LowRankChange, Weighted
from weightsmith.errors import NonFiniteError, UsageError
from weightsmith.lora.algebra import (
    concatenated,
    cosine,
    dense_spectrum,
    inner,
    kept_rank,
    leading,
    norm,
    spectrum,
    truncated,
    zeros,
)
from weightsmith.lora.factoring import factored


def change(rng, rows=12, columns=9, rank=3, scale=1.0):
    return LowRankChange(rng.normal(size=(rows, rank)), rng.normal(size=(rank, columns)), scale)


def dense(found):
    return found.rows(0, found.shape[0])


def regauged(found, rng):
    """The same change as another product."""
    gauge = rng.normal(size=(found.rank, found.rank)) + 3.0 * np.eye(found.rank)
    return LowRankChange(found.left @ gauge, np.linalg.solve(gauge, found.right), found.scale)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 14),
    st.integers(1, 14),
    st.lists(
        st.tuples(st.floats(-2.0, 2.0), st.integers(1, 5), st.floats(0.1, 4.0)),
        min_size=1,
        max_size=4,
    ),
)
def test_a_weighted_sum_is_that_of_the_dense_changes(seed, rows, columns, parts):
    rng = np.random.default_rng(seed)
    changes = [(w, change(rng, rows, columns, r, s)) for w, r, s in parts]
    expected = sum(w * c.scale * c.left @ c.right for w, c in changes)
    summed = concatenated(changes)
    assert summed.rank == sum(r for _, r, _ in parts)
    assert np.allclose(dense(summed), expected, rtol=0, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 6))
def test_truncation_is_the_best_approximation_that_the_dense_decomposition_gives(seed, rank, kept):
    rng = np.random.default_rng(seed)
    found = change(rng, rank=rank, scale=0.7)
    u, s, vt = np.linalg.svd(dense(found))
    cut, lost = truncated(found, rank=kept)
    expected = (u[:, :kept] * s[:kept]) @ vt[:kept]
    assert cut.rank == min(rank, kept)
    assert np.allclose(dense(cut), expected, rtol=0, atol=1e-11 * s[0])
    assert lost == pytest.approx(np.linalg.norm(s[kept:rank]) / np.linalg.norm(s), abs=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_no_result_depends_on_the_gauge(seed, rank):
    rng = np.random.default_rng(seed)
    first, second = change(rng, rank=rank), change(rng, rank=2)
    other = regauged(first, rng)
    for mine, its in zip(truncated(first, rank=2), truncated(other, rank=2), strict=True):
        if isinstance(mine, float):
            assert mine == pytest.approx(its, abs=1e-9)
        else:
            # The factors themselves agree: signs and sizes are fixed.
            assert np.allclose(mine.left, its.left, rtol=0, atol=1e-7)
            assert np.allclose(mine.right, its.right, rtol=0, atol=1e-7)
    assert norm(other) == pytest.approx(norm(first), rel=1e-9)
    assert cosine(other, second) == pytest.approx(cosine(first, second), abs=1e-9)


def test_norm_inner_product_and_cosine_are_those_of_the_dense_changes():
    rng = np.random.default_rng(0)
    a, b = change(rng, scale=-0.5), change(rng, rank=5, scale=3.0)
    assert norm(a) == pytest.approx(np.linalg.norm(dense(a)), rel=1e-13)
    assert inner(a, b) == pytest.approx(float((dense(a) * dense(b)).sum()), rel=1e-12)
    expected = (dense(a) * dense(b)).sum() / np.linalg.norm(dense(a)) / np.linalg.norm(dense(b))
    assert cosine(a, b) == pytest.approx(expected, rel=1e-12)


def test_the_norm_of_changes_that_nearly_cancel_is_not_lost_in_rounding():
    rng = np.random.default_rng(1)
    a = change(rng)
    moved = LowRankChange(a.left, a.right + 1e-9 * rng.normal(size=a.right.shape))
    difference = concatenated([(1.0, moved), (-1.0, a)])
    expected = np.linalg.norm(a.left @ (moved.right - a.right))
    assert norm(difference) == pytest.approx(expected, rel=1e-5)


def test_factors_are_balanced_and_the_largest_element_of_each_left_vector_is_positive():
    negative = change(np.random.default_rng(2), rank=4, scale=-2.0)
    cut, lost = truncated(negative)
    assert lost == 0.0
    assert np.allclose(dense(cut), dense(negative), rtol=0, atol=1e-12)
    left, right = np.linalg.norm(cut.left, axis=0), np.linalg.norm(cut.right, axis=1)
    assert np.allclose(left, right, rtol=1e-12)
    assert np.allclose(cut.left.T @ cut.left, np.diag(left**2), atol=1e-12)
    assert (cut.left[abs(cut.left).argmax(axis=0), range(4)] > 0).all()


@pytest.mark.parametrize(
    "degenerate",
    [
        zeros(5, 4),
        LowRankChange(np.ones((5, 2)), np.zeros((2, 4))),
        LowRankChange(np.ones((5, 2)), np.ones((2, 4)), 0.0),
        LowRankChange(np.zeros((5, 0)), np.zeros((0, 4))),
    ],
)
def test_a_change_of_zero_stays_finite_and_has_rank_one(degenerate):
    for bounds in ({}, {"rank": 3}, {"energy": 0.9}, {"error": 0.1}):
        cut, lost = truncated(degenerate, **bounds)
        assert cut.rank == 1
        assert lost == 0.0
        assert not dense(cut).any()
        assert dense(cut).shape == (5, 4)
    assert norm(degenerate) == 0.0
    assert cosine(degenerate, change(np.random.default_rng(0), 5, 4)) == 0.0


def test_directions_that_are_rounding_are_left_out():
    rng = np.random.default_rng(3)
    one = change(rng, rank=2)
    twice = concatenated([(0.5, one), (0.5, one)])
    cut, lost = truncated(twice, rank=4)
    assert twice.rank == 4
    assert cut.rank == 2
    assert lost == 0.0
    assert np.allclose(dense(cut), dense(one), rtol=0, atol=1e-13)


def test_a_rank_beyond_the_matrix_ends_at_the_matrix():
    wide = change(np.random.default_rng(4), 3, 20, 8)
    cut, lost = truncated(wide, rank=100)
    assert cut.rank == 3
    assert lost == 0.0
    assert np.allclose(dense(cut), dense(wide), atol=1e-12)


@pytest.mark.parametrize("size", [1e-170, 1e160])
def test_sizes_whose_squares_leave_the_range_of_numbers_are_measured(size):
    tiny = LowRankChange(np.full((4, 1), size), np.ones((1, 3)))
    assert norm(tiny) == pytest.approx(size * np.sqrt(12.0), rel=1e-12, abs=0.0)
    cut, _ = truncated(tiny, energy=0.5)
    assert np.allclose(dense(cut) / size, 1.0, rtol=1e-12)
    assert cosine(tiny, tiny) == pytest.approx(1.0)


def test_energy_and_error_keep_the_fewest_directions_that_do():
    values = np.array([4.0, 2.0, 1.0, 0.5])
    squares = values**2 / (values**2).sum()
    assert kept_rank(values, energy=float(squares[0]) - 1e-9) == 1
    assert kept_rank(values, energy=float(squares[0]) + 1e-9) == 2
    assert kept_rank(values, energy=1.0) == 4
    assert kept_rank(values, error=float(np.sqrt(squares[3])) + 1e-9) == 3
    assert kept_rank(values, error=float(np.sqrt(squares[3])) - 1e-9) == 4
    assert kept_rank(values, error=0.0) == 4
    assert kept_rank(values, energy=1.0, rank=2) == 2
    assert kept_rank(values, energy=0.1, error=0.2) == kept_rank(values, error=0.2)
    assert kept_rank(np.zeros(0), rank=3) == 1


@pytest.mark.parametrize(
    ("bounds", "said"),
    [
        ({"rank": 0}, "rank of 0"),
        ({"energy": 0.0}, "energy of 0"),
        ({"energy": 1.5}, "energy of 1.5"),
        ({"energy": float("nan")}, "energy of nan"),
        ({"error": 1.0}, "error of 1"),
        ({"error": -0.1}, "error of -0.1"),
    ],
)
def test_bounds_without_a_meaning_are_refused(bounds, said):
    with pytest.raises(UsageError, match=said):
        kept_rank(np.ones(3), **bounds)


def test_no_changes_and_changes_of_other_shapes_have_no_sum():
    rng = np.random.default_rng(0)
    with pytest.raises(UsageError, match="at least one"):
        concatenated([])
    with pytest.raises(UsageError, match="12 x 9"):
        concatenated([(1.0, change(rng)), (1.0, change(rng, 9, 12))])


def test_numbers_that_are_not_finite_are_refused():
    damaged = LowRankChange(np.full((4, 1), np.nan), np.ones((1, 3)))
    with pytest.raises(NonFiniteError, match="damaged"):
        spectrum(damaged)
    with pytest.raises(NonFiniteError, match="damaged"):
        dense_spectrum(np.full((2, 2), np.inf))


def test_loha_lokr_sums_and_full_changes_are_factored_exactly():
    rng = np.random.default_rng(5)
    hadamard = Hadamard(change(rng, 20, 15, 2), change(rng, 20, 15, 3, 0.5), -1.5)
    kronecker = Kronecker(rng.normal(size=(3, 4)), rng.normal(size=(5, 2)), -0.25)
    low_kronecker = Kronecker(rng.normal(size=(4, 4)), change(rng, 5, 4, 2).rows(0, 5), 2.0)
    weighted = Weighted(((0.5, change(rng, 20, 15)), (-1.0, change(rng, 20, 15, 1))))
    full = Full(rng.normal(size=(6, 4)), 0.5)
    for given_change, rank in (
        (hadamard, 6),
        (kronecker, 6),
        (low_kronecker, 8),
        (weighted, 4),
        (full, 4),
    ):
        found = factored(given_change)
        assert found.rank == rank
        assert np.allclose(dense(found), dense(given_change), rtol=0, atol=1e-12)


def test_what_is_no_product_is_cut_to_the_best_approximation():
    rng = np.random.default_rng(6)
    for given_change in (
        Hadamard(change(rng, 20, 15, 2), change(rng, 20, 15, 3)),
        Kronecker(rng.normal(size=(3, 4)), rng.normal(size=(5, 2))),
        Full(rng.normal(size=(6, 4))),
    ):
        expected = leading(dense_spectrum(dense(given_change)), 2)
        assert np.allclose(dense(factored(given_change, rank=2)), dense(expected), atol=1e-10)


def test_a_kronecker_product_with_zeros_is_zero():
    found = factored(Kronecker(np.zeros((2, 2)), np.ones((3, 3))))
    assert found.rank == 1
    assert not dense(found).any()
    assert found.shape == (6, 6)
