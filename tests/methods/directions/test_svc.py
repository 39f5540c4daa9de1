"""Singular value calibration against its formula in plain numpy, its identities, and its degenerate cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from weightsmith.errors import RecipeError
from weightsmith.tensors.dtypes import DType


def draw(n, shape=(12, 9), seed=0):
    base, *rest = np.random.default_rng(seed).normal(size=(n + 1, *shape))
    return base, [base + 0.1 * r for r in rest]


def by_hand(base, experts, merged, alpha):
    """Direction by direction, task by task, as the formula is written."""
    taus = [e - base for e in experts]
    u, s, v = np.linalg.svd(merged - base, full_matrices=False)
    result = base.copy()
    for r in range(s.size):
        counts = []
        for tau in taus:
            response = u[:, r] @ tau
            counts.append(max(alpha, s[r] * v[r] @ response / (response @ response)))
        result = result + len(taus) / sum(counts) * s[r] * np.outer(u[:, r], v[r])
    return result


def close(actual, expected, atol=1e-11):
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=atol)


def rotation(n, seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("shape", [(12, 9), (9, 12), (7, 7)])
def test_singular_values_are_divided_by_the_mean_count_of_the_tasks(merge, shape, alpha):
    base, experts = draw(3, shape)
    shared = {"alpha": alpha, "lambda": 0.7}
    per_expert = [{"weight": w} for w in (1.0, 0.5, 2.0)]
    weighted = sum(w * (e - base) for w, e in zip((1.0, 0.5, 2.0), experts, strict=True))
    expected = by_hand(base, experts, base + 0.7 * weighted, alpha)
    merged = merge("svc", base, experts, shared=shared, per_expert=per_expert)
    close(merged, expected)
    assert np.abs(merged - base - 0.7 * weighted).max() > 1e-3


@pytest.mark.parametrize("svd", ["exact", "gram", "auto"])
def test_a_merge_by_any_method_is_calibrated_by_the_experts_behind_it(merge, svd):
    base, experts = draw(3)
    made = merge("ties", base, experts, shared={"density": 0.6})
    shared = {"alpha": 0.3, "merged": "first", "svd": svd}
    close(
        merge("svc", base, [made, *experts], shared=shared), by_hand(base, experts, made, 0.3), 1e-9
    )


def test_a_matrix_of_one_column_by_arithmetic(merge):
    """u = (3, 4) / 5 for the sum (3, 4); responses 3 * 3 / 5 and 4 * 4 / 5, counts 5 / 1.8 and 5 / 3.2."""
    base = np.zeros((2, 1))
    experts = [np.array([[3.0], [0.0]]), np.array([[0.0], [4.0]])]
    factor = 2 / (5 / 1.8 + 5 / 3.2)
    close(merge("svc", base, experts), factor * np.array([[3.0], [4.0]]))


@pytest.mark.parametrize(("n", "scale"), [(2, 1.0), (5, 1.0), (4, 0.5)])
def test_copies_of_a_task_that_were_added_up_give_that_task(merge, n, scale):
    base, experts = draw(1)
    close(merge("svc", base, experts * n, shared={"lambda": scale}), experts[0])


def test_the_average_of_copies_is_left_alone(merge):
    base, experts = draw(1)
    shared = {"lambda": 0.25, "alpha": 0.1}
    close(merge("svc", base, experts * 4, shared=shared), experts[0])


@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_tasks_with_orthogonal_rows_and_columns_are_left_alone(merge, alpha):
    base = np.random.default_rng(5).normal(size=(10, 7))
    left, right = rotation(10, 1), rotation(7, 2)
    parts = [slice(0, 3), slice(3, 6)]
    taus = [
        (left[:, p] * size) @ right[p]
        for p, size in zip(parts, [(5, 4, 3), (7, 2, 1)], strict=True)
    ]
    merged = merge("svc", base, [base + t for t in taus], shared={"alpha": alpha})
    close(merged, base + taus[0] + taus[1])


def test_an_alpha_above_every_count_divides_by_it(merge):
    base, experts = draw(3)
    merged = merge("svc", base, experts, shared={"alpha": 1e4})
    close(merged - base, sum(e - base for e in experts) / 1e4)


def test_with_alpha_one_no_direction_grows(merge):
    base, experts = draw(4)
    tau = sum(e - base for e in experts)
    before = np.linalg.svd(tau, compute_uv=False)
    after = np.linalg.svd(merge("svc", base, experts) - base, compute_uv=False)
    assert (after <= before + 1e-12).all()
    assert after.sum() < 0.9 * before.sum()


def test_rotating_rows_and_columns_rotates_the_merge(merge):
    base, experts = draw(3)
    left, right = rotation(12, 1), rotation(9, 2)
    turned = merge("svc", left @ base @ right, [left @ e @ right for e in experts])
    close(turned, left @ merge("svc", base, experts) @ right, 1e-10)


def test_outputs_are_rows_unless_weights_are_stored_input_first(merge):
    base, experts = draw(3)
    expected = merge("svc", base, experts).T
    turned = merge("svc", base.T, [e.T for e in experts], input_first=True)
    close(turned, expected)
    assert np.abs(merge("svc", base.T, [e.T for e in experts]) - expected).max() > 1e-3


def test_a_task_that_changed_nothing_takes_no_part(merge):
    base, experts = draw(2)
    for alpha in (0.0, 0.1, 1.0):
        shared = {"alpha": alpha}
        alone = merge("svc", base, experts, shared=shared)
        close(merge("svc", base, [*experts, base], shared=shared), alone)


def test_changes_that_cancel_give_the_base(merge):
    base, (expert,) = draw(1)
    opposite = base - (expert - base)
    merged = merge("svc", base, [expert, opposite])
    np.testing.assert_allclose(merged, base, rtol=0, atol=1e-15)


def test_a_merge_that_every_task_contradicts_is_kept_where_alpha_is_zero(merge):
    base, (expert,) = draw(1)
    shared = {"merged": "first", "alpha": 0.0}
    made = base - (expert - base)
    np.testing.assert_array_equal(merge("svc", base, [made, expert], shared=shared), made)


def to_bfloat16(array):
    return torch.from_numpy(array).to(torch.bfloat16).float().numpy()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, "bfloat16"])
def test_responses_that_are_only_rounding_count_for_nothing(merge, dtype):
    """Tasks in orthogonal spaces whose weights were rounded: what rounding left of one in the other is no response."""
    narrow = dtype == "bfloat16"
    rounded = to_bfloat16 if narrow else lambda x: x.astype(dtype)
    base = rounded(np.random.default_rng(0).normal(size=(40, 30)))
    left, right = rotation(40, 3), rotation(30, 4)
    sizes = [4 * (1 + i + np.arange(4) / 7) for i in range(3)]
    parts = [slice(4 * i, 4 * i + 4) for i in range(3)]
    taus = [(left[:, p] * size) @ right[p] for p, size in zip(parts, sizes, strict=True)]
    experts = [rounded(base + t) for t in taus]
    facts = {"stored": DType.BFLOAT16} if narrow else {}
    found = merge("svc", base, experts, **facts).astype(np.float64) - base
    error = np.linalg.norm(found - sum(taus)) / np.linalg.norm(sum(taus))
    assert error < {np.float32: 1e-5, np.float64: 1e-13}.get(dtype, 0.03)


def test_vectors_kernels_and_embeddings_follow_their_rules(merge):
    for shape, facts, shared in (
        ((7,), {}, {}),
        ((), {}, {}),
        ((4, 3, 2, 2), {}, {}),
        ((4, 3, 2), {}, {"stacks": "others"}),
        ((9, 4), {"role": "embedding"}, {"embeddings": "merged"}),
    ):
        base, experts = draw(3, shape)
        added = base + sum(0.5 * (e - base) for e in experts)
        close(merge("svc", base, experts, shared={**shared, "lambda": 0.5}, **facts), added)
        rule = "embeddings" if facts else "others"
        kept = merge("svc", base, experts, shared={**shared, rule: "base"}, **facts)
        np.testing.assert_array_equal(kept, base)
    base, experts = draw(3, (4, 12, 9))
    stacked = merge("svc", base, experts)
    for i in range(4):
        close(stacked[i], merge("svc", base[i], [e[i] for e in experts]))


def test_a_merge_without_the_models_it_came_from_is_refused(merge):
    base, experts = draw(1)
    with pytest.raises(RecipeError, match=r"merged: first.*then the models"):
        merge("svc", base, experts, shared={"merged": "first"})


def test_the_preset_of_the_tool(merge):
    base, experts = draw(3)
    made = base + 0.3 * sum(e - base for e in experts)
    close(
        merge("svc", base, experts, preset="fusionbench"), by_hand(base, experts, made, 0.1), 1e-10
    )
