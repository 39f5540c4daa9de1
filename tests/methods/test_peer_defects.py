"""Defects found in other tools, each as a test that fails with the defect."""

from __future__ import annotations

import numpy as np
import pytest
import torch


def draw(n, shape=(6, 7), size=0.1, seed=0):
    base, *rest = np.random.default_rng(seed).normal(size=(n + 1, *shape))
    return base, [base + size * r for r in rest]


def weights(n):
    return [{"weight": 1.0}] * n


@pytest.mark.parametrize("size", [1e-3, 3e-4, 1e-6, 1e-12])
def test_sce_weights_stay_adaptive_on_small_task_vectors(merge, size):
    base, experts = (
        np.zeros((30, 30)),
        [size * x for x in np.random.default_rng(0).normal(size=(2, 30, 30))],
    )
    experts[1] = abs(experts[1]) * np.sign(experts[0]) * 0.3
    shared = {"select_topk": 1.0}
    merged = merge("sce", base, experts, shared=shared)
    first, second = (np.sum(e**2) for e in experts)
    expected = (first * experts[0] + second * experts[1]) / (first + second)
    np.testing.assert_allclose(merged, expected, rtol=1e-9)
    if size < 1e-4:
        uniform = merge("sce", base, experts, shared=shared, preset="mergekit")
        assert np.abs(uniform - merged).max() > 0.1 * size


@pytest.mark.parametrize("method", ["breadcrumbs", "breadcrumbs_ties"])
@pytest.mark.parametrize("preset", ["paper", "mergekit"])
@pytest.mark.parametrize("n", [3, 50, 99])
def test_breadcrumbs_does_not_zero_tensors_too_small_for_an_outlier(merge, method, preset, n):
    base, experts = draw(1, (n,))
    shared = {"density": 0.9, "gamma": 0.01}
    merged = merge(method, base, experts, shared=shared, per_expert=weights(1), preset=preset)
    assert (merged != base).sum() == int(0.9 * n)


@pytest.mark.parametrize("cosine", [-0.3, -0.49, -0.499999])
def test_model_stock_never_extrapolates(merge, cosine):
    # Three unit vectors with one common cosine, from the square root of their Gram matrix.
    values, vectors = np.linalg.eigh(np.full((3, 3), cosine) + (1 - cosine) * np.eye(3))
    experts = list(vectors @ np.diag(np.sqrt(np.maximum(values, 0))) @ vectors.T)
    merged = merge("model_stock", np.zeros(3), experts)
    np.testing.assert_array_equal(merged, np.zeros(3))
    unbounded = merge("model_stock", np.zeros(3), experts, preset="mergekit")
    t = 3 * cosine / (1 + 2 * cosine)
    np.testing.assert_allclose(unbounded, t * np.mean(experts, 0), rtol=1e-4, atol=1e-6)


def test_model_stock_does_not_shrink_small_task_vectors(merge):
    base, (a, b) = np.zeros(20), [np.random.default_rng(0).random(20) for _ in range(2)]
    b = np.random.default_rng(1).random(20)
    small = merge("model_stock", base, [a * 1e-6, b * 1e-6])
    np.testing.assert_allclose(small, 1e-6 * merge("model_stock", base, [a, b]), rtol=1e-9)
    assert np.linalg.norm(small) > 3 * np.linalg.norm(
        merge("model_stock", base, [a * 1e-6, b * 1e-6], preset="mergekit")
    )


@pytest.mark.parametrize("method", ["della", "della_linear"])
@pytest.mark.parametrize("shape", [(4, 1), (1,), (), (1, 1), (2, 3, 1)])
@pytest.mark.parametrize("preset", ["paper", "mergekit"])
def test_della_works_on_rows_of_one_element(merge, method, shape, preset):
    base, expert = np.zeros(shape), np.ones(shape)
    shared = {"density": 0.5, "epsilon": 0.1, "rescale": True}
    merged = merge(method, base, [expert], shared=shared, per_expert=weights(1), preset=preset)
    assert np.isfinite(merged).all()
    if preset == "paper":
        assert np.isin(merged, [0.0, 2.0]).all()


def test_della_mergekit_preset_restores_the_l1_norm_and_keeps_a_share_around_the_density(merge):
    base, experts = draw(1, (40, 50))
    shared = {"density": 0.5}
    merged = merge("della", base, experts, shared=shared, per_expert=weights(1), preset="mergekit")
    assert np.abs(merged - base).sum() == pytest.approx(np.abs(experts[0] - base).sum())
    assert 0.45 < (merged != base).mean() < 0.55


def test_ties_keeps_exactly_as_many_as_asked_and_not_one_more(merge):
    base, experts = draw(1, (10, 10))
    for density in (0.2, 0.5, 0.99):
        assert (merge("ties", base, experts, shared={"density": density}) != base).sum() == int(
            100 * density
        )


def test_ties_with_density_one_or_nearly_zero_does_not_fail(merge):
    base, experts = draw(2, (3,))
    for preset in ("paper", "mergekit"):
        for density in (0.0, 1e-9, 1.0):
            shared = {"density": density}
            merged = merge(
                "ties", base, experts, shared=shared, per_expert=weights(2), preset=preset
            )
            assert np.isfinite(merged).all()


def test_dare_with_everything_dropped_is_the_base_and_not_nan(merge):
    base, experts = draw(2)
    for rescale in ("none", "probability", "l1"):
        merged = merge("dare_linear", base, experts, shared={"density": 0.0, "rescale": rescale})
        np.testing.assert_array_equal(merged, base)


def test_dare_l1_rescale_of_a_task_vector_that_lost_every_element_is_finite(merge):
    base, expert = np.zeros(1), np.ones(1)
    for seed in range(20):
        merged = merge(
            "dare_linear", base, [expert], shared={"density": 0.5, "rescale": "l1"}, seed=seed
        )
        assert merged in ([0.0], [1.0])


def test_bfloat16_is_summed_in_float32(merge):
    base = torch.zeros(4, dtype=torch.bfloat16)
    experts = [torch.full((4,), 1.0, dtype=torch.bfloat16)] + [
        torch.full((4,), 2.0**-8, dtype=torch.bfloat16)
    ] * 8
    merged = merge("task_arithmetic", base, experts)
    assert merged.tolist() == [1.03125] * 4


def test_weights_are_not_rounded_to_the_tensors_dtype(merge):
    expert = torch.ones(3, dtype=torch.bfloat16)
    merged = merge(
        "linear", None, [expert, 0 * expert], per_expert=[{"weight": 0.6}, {"weight": 0.4}]
    )
    assert merged.tolist() == pytest.approx([0.6] * 3, rel=1e-7)


def test_uniform_merge_of_identical_checkpoints_is_bit_exact_for_any_number(merge):
    model = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    for n in (2, 3, 5, 7, 11):
        np.testing.assert_array_equal(merge("linear", None, [model] * n), model)


def test_slerp_of_nearly_equal_float32_tensors_is_finite_and_between(merge):
    base, (expert,) = (x for x in draw(1, (50, 50), size=1e-6))
    base, expert = base.astype(np.float32), expert.astype(np.float32)
    merged = merge("slerp", base, [expert], shared={"t": 0.5})
    np.testing.assert_allclose(merged, (base.astype(float) + expert) / 2, atol=3e-7)


def test_lines_of_a_model_with_one_block_does_not_divide_by_zero(merge):
    base, (expert,) = draw(1)
    merged = merge("lines", base, [expert], shared={"alpha": 0.3}, layer=0, layers=1)
    np.testing.assert_allclose(merged, expert, rtol=1e-12)
