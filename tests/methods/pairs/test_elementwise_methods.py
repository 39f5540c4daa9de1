"""Passthrough, NearSwap and Arcee Fusion against float64 formulas."""

from __future__ import annotations

import numpy as np
import pytest


def draw(n, shape=(4, 5), seed=0):
    return list(np.random.default_rng(seed).normal(size=(n, *shape)))


def test_passthrough_hands_on_every_bit(merge):
    model = np.array([0.0, -0.0, np.inf, np.nan, 1e-45], np.float32)
    merged = merge("passthrough", None, [model])
    np.testing.assert_array_equal(merged.view(np.uint32), model.view(np.uint32))


def test_passthrough_scales(merge):
    (model,) = draw(1)
    np.testing.assert_array_equal(
        merge("passthrough", None, [model], per_expert=[{"scale": -2.0}]), -2 * model
    )


@pytest.mark.parametrize("preset", ["paper", "mergekit"])
@pytest.mark.parametrize("t", [0.0, 0.3, 5.0])
def test_nearswap_moves_every_weight_by_at_most_t(merge, preset, t):
    base, expert = draw(2)
    delta = expert - base
    share = np.clip(t / np.maximum(np.abs(delta), 1e-6), 0, 1)
    merged = merge("nearswap", base, [expert], shared={"t": t}, preset=preset)
    np.testing.assert_allclose(merged, share * expert + (1 - share) * base, rtol=1e-12, atol=1e-12)


def test_nearswap_below_mergekits_bound_differs_only_in_the_preset(merge):
    base, expert = np.zeros(2), np.array([2e-7, 5e-7])
    shared = {"t": 4e-7}
    np.testing.assert_allclose(merge("nearswap", base, [expert], shared=shared), [2e-7, 4e-7])
    mergekits = merge("nearswap", base, [expert], shared=shared, preset="mergekit")
    np.testing.assert_allclose(mergekits, expert * 0.4)


def test_nearswap_takes_near_weights_bit_for_bit(merge):
    base = np.array([1.0], np.float32)
    expert = np.array([1.2345678e-5], np.float32)
    np.testing.assert_array_equal(merge("nearswap", base, [expert], shared={"t": 2.0}), expert)


def fusion(base, expert):
    def softmax(x):
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True) + 1e-8

    p, q = softmax(expert), softmax(base)
    importance = np.abs(expert - base) * np.sum(p * np.log(p / q), -1, keepdims=True)
    ordered = np.sort(importance, axis=None)
    first, median, third = (
        ordered[int(np.floor(s * (ordered.size - 1)))] for s in (0.25, 0.5, 0.75)
    )
    return np.where(importance >= median + 1.5 * (third - first), expert, base)


@pytest.mark.parametrize("shape", [(1,), (9,), (8, 16), (3, 5, 7), (1, 1)])
@pytest.mark.parametrize("seed", [0, 1])
def test_arcee_fusion_takes_what_stands_out(merge, shape, seed):
    base, change = draw(2, shape, seed)
    expert = base + 0.1 * change
    merged = merge("arcee_fusion", base, [expert])
    np.testing.assert_array_equal(merged, fusion(base, expert))
    if len(shape) > 1 and merged.size > 1:
        assert 0 < (merged == expert).mean() < 0.5


def test_arcee_fusion_smooths_probabilities_that_vanish(merge):
    """Of numbers 30 apart the softmax of most is below the smoothing."""
    base, change = draw(2, (6, 20))
    base[:2, 0] += 30.0
    expert = base + change
    merged = merge("arcee_fusion", base, [expert])
    np.testing.assert_array_equal(merged, fusion(base, expert))
    assert 0 < (merged == expert).mean() < 1


def test_arcee_fusion_is_exact_and_repeatable_above_a_million_elements(merge):
    rng = np.random.default_rng(5)
    base = rng.normal(size=(1100, 1000)).astype(np.float32)
    expert = base + np.float32(0.01) * rng.normal(size=base.shape).astype(np.float32)
    merged = merge("arcee_fusion", base, [expert])
    exact = fusion(base.astype(np.float64), expert.astype(np.float64)) == expert
    assert ((merged == expert) != exact).mean() < 1e-3
    np.testing.assert_array_equal(merge("arcee_fusion", base, [expert]), merged)
