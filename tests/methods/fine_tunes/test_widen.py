"""WIDEN against its formula in float64, its special cases, its axes, and defects of other implementations."""

from __future__ import annotations

import math
import warnings
from fractions import Fraction

import numpy as np
import pytest

from weightsmith.methods.fine_tunes.widen import ColumnWeights

RNG = np.random.default_rng


def draw(n, shape, seed=0, size=0.1):
    rng = RNG(seed)
    base = rng.normal(size=shape)
    return base, [base + size * rng.normal(size=shape) * (i + 1) for i in range(n)]


def ranks(changes):
    order = sorted(range(len(changes)), key=lambda j: (changes[j], j))
    found = [0.0] * len(changes)
    for position, column in enumerate(order):
        found[column] = Fraction(position, len(changes))
    return found


def scores(significance, t, s):
    n, columns = len(significance), len(significance[0])
    found = [[0.0] * columns for _ in range(n)]
    for c in range(columns):
        whole = sum(math.exp(significance[i][c]) for i in range(n))
        for i in range(n):
            mean = sum(significance[i]) / columns
            important = significance[i][c] > Fraction(t) * mean
            found[i][c] = s if important else math.exp(significance[i][c]) / whole
    return found


def widen(base, experts, t=1.0, s=1.0):
    """The paper's rule for one matrix (outputs, inputs), column by column in plain Python."""
    columns = base.shape[1]
    length = [math.sqrt(sum(x * x for x in base[:, c])) for c in range(columns)]
    magnitude, direction = [], []
    for expert in experts:
        own = [math.sqrt(sum(x * x for x in expert[:, c])) for c in range(columns)]
        magnitude.append(ranks([abs(a - b) for a, b in zip(own, length, strict=True)]))
        cosine = [
            float(expert[:, c] @ base[:, c]) / (own[c] * length[c]) if own[c] * length[c] else 1.0
            for c in range(columns)
        ]
        direction.append(ranks([1.0 - x for x in cosine]))
    first, second = scores(magnitude, t, s), scores(direction, t, s)
    merged = base.copy()
    for i, expert in enumerate(experts):
        weight = (np.array(first[i]) + np.array(second[i])) / 2
        merged += weight[None, :] * (expert - base)
    return merged


def column_weights(base, experts):
    """The method's weights of float64 columns, from sums that numpy has made."""
    sums = [base**2]
    for expert in experts:
        sums += [expert**2, (expert - base) ** 2]
    return ColumnWeights(1.0, 1.0, base.shape[1])(*[x.sum(0) for x in sums])


@pytest.mark.parametrize(("t", "s"), [(1.0, 1.0), (0.5, 0.7), (2.5, 1.0), (0.0, 0.3)])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_matrix_is_merged_column_by_column(merge, n, t, s):
    base, experts = draw(n, (7, 11))
    merged = merge("widen", base, experts, shared={"above_average": t, "calibration": s})
    np.testing.assert_allclose(merged, widen(base, experts, t, s), rtol=0, atol=1e-12)


@pytest.mark.parametrize("role", ["embedding", "position_embedding", "type_embedding"])
def test_the_columns_of_an_embedding_are_its_tokens(merge, role):
    base, experts = draw(2, (13, 5))
    merged = merge("widen", base, experts, role=role)
    expected = widen(base.T, [e.T for e in experts]).T
    np.testing.assert_allclose(merged, expected, rtol=0, atol=1e-12)


def test_a_head_is_a_linear_map_and_not_transposed(merge):
    base, experts = draw(2, (13, 5))
    merged = merge("widen", base, experts, role="head")
    np.testing.assert_allclose(merged, widen(base, experts), rtol=0, atol=1e-12)


def test_a_conv1d_gives_the_transpose_of_the_linear_layer(merge):
    base, experts = draw(2, (5, 9))
    linear = merge("widen", base, experts)
    turned = [x.T.copy() for x in [base, *experts]]
    np.testing.assert_array_equal(merge("widen", turned[0], turned[1:], input_first=True).T, linear)
    stated = merge("widen", turned[0], turned[1:], shared={"orientation": "input_first"})
    np.testing.assert_array_equal(stated.T, linear)
    ignored = {"orientation": "output_first"}
    np.testing.assert_array_equal(
        merge("widen", base, experts, shared=ignored, input_first=True), linear
    )


def test_stacked_experts_are_merged_one_by_one(merge):
    base, experts = draw(2, (3, 4, 6))
    merged = merge("widen", base, experts)
    for i in range(3):
        np.testing.assert_allclose(
            merged[i], widen(base[i], [e[i] for e in experts]), rtol=0, atol=1e-12
        )


def test_kernels_are_matrices_of_their_first_axis(merge):
    base, experts = draw(2, (4, 3, 2, 2))
    merged = merge("widen", base, experts)
    flat = widen(base.reshape(4, 12), [e.reshape(4, 12) for e in experts])
    np.testing.assert_allclose(merged.reshape(4, 12), flat, rtol=0, atol=1e-12)


def test_vectors_take_their_own_size_as_significance(merge):
    base, experts = draw(3, (9,))
    merged = merge("widen", base, experts, shared={"above_average": 1.2, "calibration": 0.6})
    changes = [[Fraction(float(x)) for x in np.abs(e - base)] for e in experts]
    weights = np.array(scores(changes, 1.2, 0.6))
    expected = base + sum(w * (e - base) for w, e in zip(weights, experts, strict=True))
    np.testing.assert_allclose(merged, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(), (6,), (6, 4), (2, 3, 4)])
def test_one_expert_is_the_result(merge, shape):
    base, (expert,) = draw(1, shape)
    merged = merge("widen", base, [expert])
    np.testing.assert_allclose(merged, expert, rtol=1e-15, atol=0)


def test_one_float32_expert_is_the_result_bit_for_bit_where_it_is_a_matrix(merge):
    base, (expert,) = (x for x in draw(1, (50, 30)))
    base, expert = base.astype(np.float32), expert.astype(np.float32)
    np.testing.assert_array_equal(merge("widen", base, [expert]), expert)


def test_lambda_scales_the_merged_task_vector(merge):
    base, experts = draw(2, (4, 5))
    full = merge("widen", base, experts)
    half = merge("widen", base, experts, shared={"lambda": 0.5})
    np.testing.assert_allclose(half - base, (full - base) / 2, rtol=1e-12, atol=1e-15)


def test_the_order_of_inputs_does_not_matter(merge):
    base, experts = draw(3, (6, 10))
    order = RNG(5).permutation(10)
    merged = merge("widen", base, experts)
    moved = merge("widen", base[:, order], [e[:, order] for e in experts])
    np.testing.assert_allclose(moved, merged[:, order], rtol=0, atol=1e-13)


def test_only_ranks_within_an_expert_count_so_its_strength_does_not(merge):
    base, (a, b) = draw(2, (20, 6), size=1e-3)
    stronger = base + 3.0 * (b - base)
    merged, scaled = merge("widen", base, [a, b]), merge("widen", base, [a, stronger])
    alone = widen(base, [a, b]) - base
    np.testing.assert_allclose(merged - base, alone, rtol=0, atol=1e-12)
    # The same weights per column: what remains without a's part is three times as much.
    part_of_a = merge("widen", base, [a, b]) - merge("widen", base, [base, b])
    assert np.isfinite(part_of_a).all()
    np.testing.assert_allclose(scaled, widen(base, [a, stronger]), rtol=0, atol=1e-12)


def test_equal_changes_rank_in_the_order_of_the_columns(merge):
    base = np.ones((4, 4))
    expert = base * 2.0
    other = base * np.array([[4.0, 3.0, 2.0, 1.5]])
    merged = merge("widen", base, [expert, other])
    np.testing.assert_allclose(merged, widen(base, [expert, other]), rtol=0, atol=1e-12)


def test_a_column_of_zeros_is_not_the_most_significant_one(merge):
    # Elsewhere 0/0 makes its direction NaN, which sorts last and gets the full score.
    base, experts = draw(2, (6, 8))
    for x in (base, *experts):
        x[:, 3] = 0.0
    experts[1][:, 3] = 1e-6
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merged = merge("widen", base, experts)
    assert np.isfinite(merged).all()
    np.testing.assert_allclose(merged, widen(base, experts), rtol=0, atol=1e-12)
    assert column_weights(base, experts)[0][3] < 1.0


def test_columns_that_did_not_change_have_no_direction_of_their_own():
    base = RNG(0).normal(size=(50, 40)) * np.pi
    expert = base.copy()
    expert[:, 20:] += RNG(1).normal(size=(50, 20)) * 1e-7
    (weights,) = column_weights(base, [expert])
    np.testing.assert_array_equal(weights[21:], 1.0)


@pytest.mark.parametrize("shape", [(6,), (4, 5)])
def test_gradients_reach_every_expert(merge, shape):
    import torch

    base, experts = draw(2, shape)
    inputs = [torch.from_numpy(x).requires_grad_() for x in (base, *experts)]
    merge("widen", inputs[0], inputs[1:]).sum().backward()
    for x in inputs[1:]:
        assert torch.isfinite(x.grad).all()
        assert (x.grad != 0).all()


def test_both_array_libraries_agree():
    import torch

    rule = ColumnWeights(0.8, 0.9, columns=6)
    sums = RNG(0).exponential(size=(7, 12))
    with_torch = rule(*map(torch.from_numpy, sums))
    for ours, theirs in zip(rule(*sums), with_torch, strict=True):
        np.testing.assert_allclose(theirs.numpy(), ours, rtol=0, atol=1e-14)


def test_the_direction_of_a_small_float32_change_keeps_its_digits(merge):
    # All columns turn, each by a little more than the one before: 1 - cos is about 1e-10, far below float32's steps.
    columns = 64
    base = np.zeros((2, columns), np.float32)
    base[0] = RNG(0).uniform(0.5, 2.0, columns)
    expert, other = base.copy(), base.copy()
    expert[1] = base[0] * np.linspace(1e-5, 2e-5, columns, dtype=np.float32)
    other[1] = expert[1][::-1] / base[0][::-1] * base[0]
    weights = column_weights(base.astype(float), [expert.astype(float), other.astype(float)])
    expected = base + sum(
        w * (e.astype(float) - base) for w, e in zip(weights, (expert, other), strict=True)
    )
    np.testing.assert_allclose(merge("widen", base, [expert, other]), expected, rtol=1e-6, atol=0)
    np.testing.assert_allclose(
        expected, widen(base.astype(float), [expert.astype(float), other.astype(float)]), rtol=1e-3
    )
