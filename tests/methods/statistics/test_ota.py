"""OTA-Merging: weights from second moments, grafting, and the defaults of its authors' code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from weightsmith.errors import RecipeError
from weightsmith.graph.backends.torch_memory import evaluate_model
from weightsmith.graph.graph import source
from weightsmith.graph.site import Site, Statistic
from weightsmith.methods.parts import registry
from weightsmith.tensors.place import Place

SHAPE = (3, 4)


def draw(n, seed=0, shape=SHAPE):
    return list(np.random.default_rng(seed).normal(size=(n, *shape)))


def curvatures(n, seed=1, size=1.0, shape=SHAPE):
    return list(np.random.default_rng(seed).exponential(size=(n, *shape)) * size)


def each(key, numbers):
    return [{key: number} for number in numbers]


def ota(merge, base, experts, moments, density=1.0, **how):
    densities = [density] * len(experts) if isinstance(density, float) else density
    return merge(
        "ota", base, experts, statistics=moments, per_expert=each("density", densities), **how
    )


def grafted(tau, v, density):
    s = v * tau**2
    k = int(np.floor(density * s.size))
    mask = np.zeros(s.size, bool)
    mask[np.argsort(-s.reshape(-1), kind="stable")[:k]] = True
    return mask.reshape(s.shape) & (s > 0)


@pytest.mark.parametrize("power", [0.5, 1.0, 0.0, 0.7])
@pytest.mark.parametrize("size", [1.0, 1e-16])
def test_ota_is_its_formula(merge, power, size):
    base, *experts = draw(4)
    moments = curvatures(3, size=size)
    densities = [0.5, 0.75, 0.25]
    taus = [e - base for e in experts]
    masks = [grafted(t, v, d) for t, v, d in zip(taus, moments, densities, strict=True)]
    q = [v**power * m for v, m in zip(moments, masks, strict=True)]
    total = sum(q)
    tau = sum(w * t for w, t in zip(q, taus, strict=True)) / np.where(total > 0, total, 1)
    found = ota(merge, base, experts, moments, densities, shared={"power": power, "lambda": 0.8})
    np.testing.assert_allclose(found, base + 0.8 * tau, rtol=1e-7, atol=1e-12)


def test_grafting_measures_its_density_over_the_whole_model_by_default():
    spec = registry.get("ota")
    site = Site(Place("w"), (4,), statistics=(Statistic("adam", (source(2),), (4,)),))
    graph = spec.build({"density": 0.5}, [{}]).combine(source(0), [source(1)], site)
    zero, one = torch.zeros(4), torch.ones(4)
    found = evaluate_model(
        {"a": graph, "b": graph}, {"a": [zero, one, one * 1e-18], "b": [zero, one, one * 1e-9]}
    )
    assert found["a"].tolist() == [0.0] * 4
    assert found["b"].tolist() == [1.0] * 4


def test_equal_moments_without_masks_give_the_mean_and_no_density_the_base(merge):
    base, *experts = draw(3)
    same = curvatures(1, size=1e-15) * 2
    np.testing.assert_allclose(
        ota(merge, base, experts, same), np.mean(experts, axis=0), rtol=1e-9, atol=1e-12
    )
    np.testing.assert_array_equal(ota(merge, base, experts, same, 0.0), base)
    averaged = ota(merge, base, experts, same, 0.0, shared={"masked": "average"})
    np.testing.assert_allclose(averaged, np.mean(experts, axis=0), rtol=1e-12)


def test_a_large_epsilon_does_not_make_kept_elements_pass_for_masked_ones(merge):
    # The authors' code takes a denominator below N epsilon 1.1 for "masked everywhere": all of them here.
    base = np.zeros(4)
    experts, moments = [np.ones(4), 3 * np.ones(4)], [np.full(4, 1e-19)] * 2
    found = ota(merge, base, experts, moments, shared={"epsilon": 1e-8})
    np.testing.assert_allclose(found, 2.0, rtol=1e-9)
    weighted = [np.full(4, 1e-18), np.full(4, 9e-18)]
    np.testing.assert_allclose(ota(merge, base, experts, weighted), 2.5, rtol=1e-9)


def test_the_authors_defaults_mask_nothing(merge):
    """sqrt v + 1e-8 weighs every element of every expert; so it does where none has a curvature."""
    base, *experts = draw(3)
    moments = curvatures(2, size=1e-15)
    moments[0][0], moments[1][0] = 0.0, 0.0
    weights = [np.sqrt(v) + 1e-8 for v in moments]
    expected = (weights[0] * experts[0] + weights[1] * experts[1]) / sum(weights)
    found = merge("ota", base, experts, statistics=moments, preset="reference")
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    np.testing.assert_allclose(found[0], np.mean(experts, axis=0)[0], rtol=1e-10)


def test_the_authors_fall_back_to_the_mean_where_all_is_masked(merge):
    base, *experts = draw(3)
    moments = curvatures(2)
    found = ota(merge, base, experts, moments, 0.0, preset="reference")
    np.testing.assert_allclose(found, np.mean(experts, axis=0), rtol=1e-12)


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_weights_over_their_mean_are_the_authors_global_normalisation(merge, power):
    base, *experts = draw(3)
    moments = [curvatures(2, size=1e-12)[0], curvatures(2, size=1e-9)[1]]
    raised = [v**power for v in moments]
    weights = [r / (r.mean() + 1e-8) + 1e-8 for r in raised]
    expected = (weights[0] * experts[0] + weights[1] * experts[1]) / sum(weights)
    shared = {"power": power, "normalize": "tensor_mean"}
    found = merge("ota", base, experts, statistics=moments, shared=shared, preset="reference")
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("rule", ["none", "model", "mean", "tensor_mean"])
def test_moments_that_are_zero_everywhere_give_the_mean(merge, rule):
    base, *experts = draw(3)
    zeros = [np.zeros(SHAPE)] * 2
    found = ota(merge, base, experts, zeros, shared={"normalize": rule})
    np.testing.assert_allclose(found, np.mean(experts, axis=0), rtol=1e-12)


def test_elements_whose_weights_vanish_count_equally_among_those_that_keep_them(merge):
    """Moments of 1e-200 squared are 0 in float64; the masks know which elements are kept."""
    experts = [np.array([4.0, 3.0, 0.2, 0.1]), np.array([0.1, 3.5, 5.0, 0.2])]
    moments = [np.full(4, 1e-200)] * 2
    found = ota(merge, np.zeros(4), experts, moments, [0.5, 0.5], shared={"power": 2.0})
    np.testing.assert_allclose(found, [4.0, 3.25, 5.0, 0.0], rtol=1e-12)


@pytest.mark.parametrize("how", ["linear", "ties"])
def test_masks_reach_the_other_ways_to_reduce(merge, how):
    # In the authors' code masks do nothing there, and `ties` divides by all experts.
    base = np.zeros(4)
    experts = [np.array([4.0, 1.0, 2.0, 1.5]), np.array([1.0, 8.0, -6.0, 5.0])]
    moments = [np.ones(4)] * 2
    masked = [np.array([4.0, 0.0, 2.0, 0.0]), np.array([0.0, 8.0, -6.0, 0.0])]
    found = ota(merge, base, experts, moments, [0.5, 0.5], shared={"reduce": how})
    if how == "linear":
        np.testing.assert_allclose(found, (masked[0] + masked[1]) / 2)
    else:
        np.testing.assert_allclose(found, [4.0, 8.0, -6.0, 0.0])


def test_without_a_base_weights_are_averaged_and_masks_rank_the_moments_alone(merge):
    experts = draw(2)
    moments = curvatures(2)
    masks = [grafted(np.ones(SHAPE), v, 0.5) for v in moments]
    q = [np.sqrt(v) * m for v, m in zip(moments, masks, strict=True)]
    total = sum(q)
    weighted = (q[0] * experts[0] + q[1] * experts[1]) / np.where(total > 0, total, 1)
    expected = np.where(masks[0] | masks[1], weighted, np.mean(experts, axis=0))
    np.testing.assert_allclose(ota(merge, None, experts, moments, 0.5), expected, rtol=1e-12)
    with pytest.raises(RecipeError, match="needs a base"):
        ota(merge, None, experts, moments, 0.5, shared={"reduce": "ties"})


@pytest.mark.parametrize("rule", ["none", "model", "mean", "tensor_mean"])
@pytest.mark.parametrize("silent", [0, 1])
def test_an_expert_whose_moments_are_zero_everywhere_has_no_say(merge, rule, silent):
    base, *experts = draw(3)
    moments = curvatures(2)
    moments[silent] = np.zeros(SHAPE)
    found = ota(merge, base, experts, moments, shared={"normalize": rule})
    np.testing.assert_allclose(found, experts[1 - silent], rtol=1e-12)


def test_normalized_moments_may_have_any_scale_of_their_own(merge):
    base, *experts = draw(3)
    moments = curvatures(2, size=1e-12)
    scaled = [moments[0], moments[1] * 1e6]
    plain = ota(merge, base, experts, moments)
    assert not np.allclose(ota(merge, base, experts, scaled), plain, rtol=1e-3)
    for rule in ("model", "mean", "tensor_mean"):
        one = ota(merge, base, experts, moments, shared={"normalize": rule})
        other = ota(merge, base, experts, scaled, shared={"normalize": rule})
        np.testing.assert_allclose(other, one, rtol=1e-10)


@pytest.mark.parametrize(
    ("role", "shape", "size"),
    [
        ("mlp.up", (4, 5), lambda a: np.linalg.norm(a, 2)),
        ("embedding", (6, 3), lambda a: np.sqrt((a * a).sum(0)).max()),
        ("norm", (9,), np.linalg.norm),
    ],
)
def test_masked_task_vectors_get_their_size_back(merge, role, shape, size):
    expert, v = draw(1, 3, shape)[0], curvatures(1, 4, 1.0, shape)[0]
    found = ota(merge, np.zeros(shape), [expert], [v], 0.5, shared={"rescale": "size"}, role=role)
    mask = grafted(expert, v, 0.5)
    masked = np.where(mask, expert, 0.0)
    np.testing.assert_allclose(found, masked * size(expert) / size(masked), rtol=1e-10)
    assert size(found) == pytest.approx(size(expert))


def test_hf_ota_weighs_by_the_moments_themselves_and_a_constant_far_below_them(merge):
    """Power 1 and epsilon 1e-28: of weights of 1e-19 the constant takes nothing, where there are none it decides."""
    base, *experts = draw(4)
    moments = [m * 1e-19 for m in curvatures(3)]
    for m in moments:
        m[0, 0] = 0.0
    moments[2][1, 1] = 0.0
    taus = [e - base for e in experts]
    weights = [m + 1e-28 for m in moments]
    expected = base + sum(q * t for q, t in zip(weights, taus, strict=True)) / sum(weights)
    found = merge("ota", base, experts, statistics=moments, preset="hf_ota")
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found[0, 0], np.mean(experts, axis=0)[0, 0], rtol=1e-10)
    roots = ota(merge, base, experts, moments)
    assert np.abs(roots - found).max() > 0.01


def test_ota_without_statistics_is_task_arithmetic_with_weights_that_sum_to_one(merge):
    base, *experts = draw(3)
    found = merge("ota", base, experts, statistics=[], per_expert=each("weight", [3.0, 1.0]))
    np.testing.assert_allclose(found, 0.75 * experts[0] + 0.25 * experts[1], rtol=1e-12)
