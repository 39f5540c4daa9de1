"""Averages, interpolations and robust centres against float64 formulas."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from weightsmith.errors import RecipeError


def draw(n, shape=(4, 5), seed=0):
    return list(np.random.default_rng(seed).normal(size=(n, *shape)))


def weights(*given):
    return [{"weight": w} for w in given]


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-13)


def test_linear_divides_by_the_sum_of_the_weights(merge):
    a, b, c = draw(3)
    close(merge("linear", None, [a, b, c], per_expert=weights(1, 2, 5)), (a + 2 * b + 5 * c) / 8)


def test_linear_without_normalize_is_the_plain_sum(merge):
    a, b = draw(2)
    merged = merge("linear", None, [a, b], shared={"normalize": False}, per_expert=weights(1, -2))
    close(merged, a - 2 * b)


def test_linear_refuses_weights_that_sum_to_zero(merge):
    with pytest.raises(RecipeError, match="sum to 0"):
        merge("linear", None, draw(2), per_expert=weights(1, -1))


def test_linear_with_all_weight_on_one_expert_is_that_expert_bit_for_bit(merge):
    a, b = (x.astype(np.float32) * s for x, s in zip(draw(2), (1e6, 1e-6), strict=True))
    np.testing.assert_array_equal(merge("linear", None, [a, b], per_expert=weights(0, 1)), b)


def test_soup_is_the_mean(merge):
    experts = draw(7)
    close(merge("soup", None, experts), np.mean(experts, 0))


def test_soup_of_shared_weights_is_bit_identical_where_a_plain_sum_is_not(merge):
    shared, *experts = (x.astype(np.float32) for x in draw(4, (1000,)))
    for e in experts:
        e[:500] = shared[:500]
    third = np.float32(1 / 3)
    assert (shared * third + shared * third + shared * third != shared).any()
    np.testing.assert_array_equal(merge("soup", None, experts)[:500], shared[:500])


@pytest.mark.parametrize("alpha", [-0.5, 0.0, 0.3, 0.5, 0.8, 1.0, 1.7])
def test_wise_ft_is_the_line_from_base_to_expert(merge, alpha):
    base, expert = draw(2)
    merged = merge("wise_ft", base, [expert], shared={"alpha": alpha})
    close(merged, (1 - alpha) * base + alpha * expert)
    if alpha in (0.0, 1.0):
        np.testing.assert_array_equal(merged, [base, expert][int(alpha)])


@pytest.mark.parametrize("alpha", [-1.0, 0.0, 0.3, 2.0])
def test_expo_goes_beyond_the_expert(merge, alpha):
    base, expert = draw(2)
    merged = merge("expo", base, [expert], shared={"alpha": alpha})
    close(merged, expert + alpha * (expert - base))
    if alpha in (-1.0, 0.0):
        np.testing.assert_array_equal(merged, [base, expert][int(alpha) + 1])


def test_expo_undoes_interpolation(merge):
    base, expert = draw(2)
    between = merge("wise_ft", base, [expert], shared={"alpha": 1 / 1.4})
    close(merge("expo", base, [between], shared={"alpha": 0.4}), expert)


@pytest.mark.parametrize(("k", "window"), [(1, 1), (3, 3), (5, 5), (10, 5)])
def test_lawa_averages_exactly_the_k_latest(merge, k, window):
    run = draw(5)
    close(merge("lawa", None, run, shared={"k": k}), np.mean(run[-window:], 0))


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 1.0])
def test_ema_is_its_recursion(merge, decay):
    run = draw(6)
    average = run[0]
    for theta in run[1:]:
        average = average + (1 - decay) * (theta - average)
    close(merge("ema", None, run, shared={"decay": decay}), average)


def test_ema_with_bias_correction_starts_from_zero(merge):
    run, d = draw(6), 0.7
    average = np.zeros_like(run[0])
    for theta in run:
        average = average + (1 - d) * (theta - average)
    merged = merge("ema", None, run, shared={"decay": d, "bias_correction": True})
    close(merged, average / (1 - d**6))


def test_wma_weighs_later_checkpoints_linearly(merge):
    a, b, c = draw(3)
    close(merge("wma", None, [a, b, c]), (a + 2 * b + 3 * c) / 6)


@pytest.mark.parametrize(
    ("n", "k"), [(3, 0), (3, 1), (4, 1), (5, 1), (5, 2), (7, 2), (7, 3), (9, 3)]
)
def test_trimmed_mean_is_the_mean_of_the_sorted_middle(merge, n, k):
    experts = draw(n, (40,), seed=n)
    expected = np.mean(np.sort(experts, 0)[k : n - k], 0)
    close(merge("trimmed_mean", None, experts, shared={"k": k}), expected)


def test_trimmed_mean_sorts_every_order_of_values(merge):
    orders = np.array(list(itertools.permutations([0.0, 1.0, 10.0, 100.0, 1000.0]))).T.copy()
    merged = merge("trimmed_mean", None, list(orders), shared={"k": 2})
    np.testing.assert_array_equal(merged, np.full(120, 10.0))


def test_trimmed_mean_ignores_one_broken_expert(merge):
    experts = [np.full(3, v) for v in (1.0, 2.0, 1e30, 3.0)]
    close(merge("trimmed_mean", None, experts), np.full(3, 2.5))


def test_trimmed_mean_refuses_to_trim_everything(merge):
    with pytest.raises(RecipeError, match="at least 5 experts, but has 4"):
        merge("trimmed_mean", None, draw(4), shared={"k": 2})
