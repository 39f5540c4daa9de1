"""DELLA's other rankings and its adaptive lambda, DARE by magnitude, and the Karcher mean of task vectors."""

from __future__ import annotations

import numpy as np
import pytest

from .test_task_vector_methods import close, draw, elected, top, uniform

LABELS = ("one", "two", "three")


def noises(shape, n):
    return [
        uniform(3, label, "layer.weight", int(np.prod(shape))).reshape(shape)
        for label in LABELS[:n]
    ]


def dropped(tau, q, noise):
    return np.where(noise < q, tau / q, 0.0)


# DELLA ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(30,), (6, 7), (5, 1), (3, 4, 5)])
def test_della_may_rank_the_whole_tensor(merge, shape):
    base, experts = draw(2, shape)
    experts[1].flat[:4] = base.flat[:4]  # equals rank by index
    kept = []
    for expert, noise in zip(experts, noises(shape, 2), strict=True):
        tau = expert - base
        rank = np.empty(tau.size)
        rank[np.argsort(np.abs(tau).ravel(), kind="stable")] = np.arange(tau.size)
        q = 0.4 + 0.4 * rank.reshape(shape) / (tau.size - 1)
        kept.append(dropped(tau, q, noise))
    shared = {"density": 0.6, "epsilon": 0.2, "ranking": "tensor"}
    facts = {"seed": 3, "labels": LABELS[:2]}
    close(merge("della_linear", base, experts, shared=shared, **facts), base + sum(kept))
    close(merge("della", base, experts, shared=shared, **facts), base + elected(kept, (1, 1), True))


@pytest.mark.parametrize("shape", [(30,), (6, 7), (5, 1), (3, 4, 5)])
def test_della_may_go_by_the_magnitude_itself(merge, shape):
    base, experts = draw(2, shape)
    if len(shape) > 1:
        experts[0][0] = base[0]  # nothing to compare with in these rows
    kept = []
    for expert, noise in zip(experts, noises(shape, 2), strict=True):
        size = np.abs(expert - base)
        low, high = size.min(-1, keepdims=True), size.max(-1, keepdims=True)
        share = np.where(high > low, (size - low) / np.where(high > low, high - low, 1), 0.5)
        kept.append(dropped(expert - base, 0.4 + 0.4 * share, noise))
    shared = {"density": 0.6, "epsilon": 0.2, "ranking": "magnitude"}
    facts = {"seed": 3, "labels": LABELS[:2]}
    close(merge("della_linear", base, experts, shared=shared, **facts), base + sum(kept))


@pytest.mark.parametrize("ranking", ["row", "tensor", "magnitude"])
def test_every_ranking_of_della_is_unbiased(merge, ranking):
    expert = np.random.default_rng(0).normal(size=40)
    merged = merge(
        "della_linear",
        np.zeros((4000, 40)),
        [np.tile(expert, (4000, 1))],
        shared={"density": 0.5, "epsilon": 0.3, "ranking": ranking},
    )
    np.testing.assert_allclose(merged.mean(0), expert, atol=0.15)


@pytest.mark.parametrize("adaptive", ["row", "tensor"])
@pytest.mark.parametrize("normalize", ["absolute", "none"])
def test_della_makes_up_for_what_the_election_removes(merge, adaptive, normalize):
    base, experts = draw(3)
    weights = (1.0, 0.5, 2.0)
    taus = [w * (e - base) for w, e in zip(weights, experts, strict=True)]
    taus[0][0] = 0.0
    experts[0][0] = base[0]
    sign = np.sign(sum(taus))
    merged, divisor = 0.0, 0.0
    for tau, weight in zip(taus, weights, strict=True):
        agrees = np.sign(tau) * sign > 0
        axes = {"axis": 1, "keepdims": True} if adaptive == "row" else {}
        before, after = (tau != 0).sum(**axes), agrees.sum(**axes)
        merged = merged + tau * agrees * before / np.where(after == 0, 1, after)
        divisor = divisor + agrees * weight
    if normalize == "absolute":
        merged = merged / np.where(divisor == 0, 1, divisor)
    shared = {"density": 1.0, "adaptive": adaptive, "normalize": normalize}
    found = merge(
        "della", base, experts, shared=shared, per_expert=[{"weight": w} for w in weights]
    )
    close(found, base + merged)


@pytest.mark.parametrize("ranking", ["tensor", "magnitude"])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (0, 3), (1,), (2, 1)])
def test_rankings_of_next_to_nothing(merge, shape, ranking):
    model = np.ones(shape, np.float32)
    shared = {"density": 0.6, "epsilon": 0.2, "ranking": ranking, "adaptive": "row"}
    merged = merge("della", np.zeros(shape, np.float32), [model, model], shared=shared)
    assert merged.shape == shape
    assert np.isfinite(merged).all()


# DARE -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rescale", "factor"), [("none", 1.0), ("probability", 1 / 0.3)])
def test_dare_may_drop_the_smallest_of_each_tensor(merge, rescale, factor):
    base, experts = draw(2)
    kept = [factor * top(e - base, 12) for e in experts]
    shared = {"density": 0.3, "drop": "magnitude", "rescale": rescale}
    close(merge("dare_linear", base, experts, shared=shared), base + sum(kept))
    close(merge("dare_ties", base, experts, shared=shared), base + elected(kept, (1, 1), True))


def test_dare_by_magnitude_with_the_l1_norm_restored(merge):
    base, (expert,) = draw(1)
    tau = expert - base
    kept = top(tau, 12)
    shared = {"density": 0.3, "drop": "magnitude", "rescale": "l1"}
    expected = base + kept * np.abs(tau).sum() / np.abs(kept).sum()
    close(merge("dare_linear", base, [expert], shared=shared), expected)


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_dare_by_magnitude_of_everything_and_nothing(merge, density):
    base, (expert,) = draw(1)
    shared = {"density": density, "drop": "magnitude"}
    close(merge("dare_linear", base, [expert], shared=shared), expert if density else base)


# Karcher --------------------------------------------------------------------------------------------------------


def test_task_karcher_is_the_karcher_mean_of_what_changed(merge):
    base, experts = draw(3)
    weights = [{"weight": w} for w in (1.0, 2.0, 0.5)]
    taus = [e - base for e in experts]
    mean = merge("karcher", None, taus, per_expert=weights)
    close(merge("task_karcher", base, experts, per_expert=weights), base + mean)
    halved = merge("task_karcher", base, experts, shared={"lambda": 0.5}, per_expert=weights)
    close(halved, base + 0.5 * mean)
    assert np.abs(merge("karcher", None, experts, per_expert=weights) - base - mean).max() > 1e-3


def test_task_karcher_of_two_is_the_middle_of_the_arc(merge):
    base, experts = draw(2)
    a, b = (t / np.linalg.norm(t) for t in (e - base for e in experts))
    middle = (a + b) / np.linalg.norm(a + b)
    close(merge("task_karcher", base, [base + a, base + b]), base + middle)


def test_task_karcher_of_copies_and_of_nothing(merge):
    base, (expert,) = draw(1)
    close(merge("task_karcher", base, [expert] * 3), expert)
    close(
        merge("task_karcher", base, [expert], shared={"lambda": 0.5}), base + 0.5 * (expert - base)
    )
    np.testing.assert_array_equal(merge("task_karcher", base, [base, base]), base)
