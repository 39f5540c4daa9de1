"""Averages weighted by stored curvature and metrics: values, special cases and the defects of other implementations."""

from __future__ import annotations

import numpy as np
import pytest

from weightsmith.errors import RecipeError
from weightsmith.graph.graph import source
from weightsmith.graph.site import Site, Statistic
from weightsmith.methods.parts import registry
from weightsmith.tensors.place import Place

RNG = np.random.default_rng(11)
SHAPE = (3, 4)


def draw(n, seed=0, shape=SHAPE):
    return list(np.random.default_rng(seed).normal(size=(n, *shape)))


def curvatures(n, seed=1, size=1.0, shape=SHAPE):
    return list(np.random.default_rng(seed).exponential(size=(n, *shape)) * size)


def each(key, numbers):
    return [{key: number} for number in numbers]


# Fisher -----------------------------------------------------------------------------------------------------------


def fisher(merge, experts, fishers, **how):
    return merge("fisher", None, experts, statistics=fishers, **how)


def test_fisher_is_the_weighted_average_of_its_formula(merge):
    experts, fishers, weights = draw(3), curvatures(3), [1.0, 0.5, 2.0]
    norms = [np.sqrt(np.sum(f * f)) for f in fishers]
    for normalize, divisors in (("none", [1.0] * 3), ("tensor", norms), ("model", norms)):
        shares = [w * f / d for w, f, d in zip(weights, fishers, divisors, strict=True)]
        expected = sum(s * x for s, x in zip(shares, experts, strict=True)) / sum(shares)
        found = fisher(
            merge,
            experts,
            fishers,
            shared={"normalize": normalize},
            per_expert=each("weight", weights),
        )
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-13)


def test_fisher_norms_run_over_the_whole_model():
    spec = registry.get("fisher")
    statistics = tuple(Statistic("fisher", (source(2 + i),), SHAPE) for i in (0, 1))
    site = Site(Place("w"), SHAPE, statistics=statistics)
    graph = spec.build({}, [{}, {}]).combine(None, [source(0), source(1)], site)
    import torch

    from weightsmith.graph.backends.torch_memory import evaluate_model

    a, b = draw(2), draw(2, 3)
    f, g = curvatures(2), curvatures(2, 5, 100.0)
    found = evaluate_model(
        {"a": graph, "b": graph},
        {
            "a": [torch.from_numpy(x) for x in [*a, *f]],
            "b": [torch.from_numpy(x) for x in [*b, *g]],
        },
    )
    norms = [np.sqrt(np.sum(f[i] ** 2) + np.sum(g[i] ** 2)) for i in (0, 1)]
    shares = [f[i] / norms[i] for i in (0, 1)]
    expected = (shares[0] * a[0] + shares[1] * a[1]) / (shares[0] + shares[1])
    np.testing.assert_allclose(found["a"].numpy(), expected, rtol=1e-12)


def test_equal_fishers_give_the_weighted_average_and_a_single_weight_its_expert(merge):
    experts, same = draw(3), curvatures(1) * 3
    found = fisher(merge, experts, same, per_expert=each("weight", [1.0, 2.0, 1.0]))
    np.testing.assert_allclose(found, (experts[0] + 2 * experts[1] + experts[2]) / 4, rtol=1e-12)
    alone = fisher(merge, experts, curvatures(3), per_expert=each("weight", [0.0, 1.0, 0.0]))
    np.testing.assert_allclose(alone, experts[1], rtol=1e-12)


def test_normalized_fishers_may_have_any_scale_of_their_own(merge):
    experts, fishers = draw(3), curvatures(3)
    scaled = [f * c for f, c in zip(fishers, (1e-9, 1.0, 1e7), strict=True)]
    np.testing.assert_allclose(
        fisher(merge, experts, scaled), fisher(merge, experts, fishers), rtol=1e-10
    )


def test_an_expert_without_information_has_no_say_and_nobody_informed_means_the_mean(merge):
    experts, fishers = draw(2), curvatures(2)
    fishers[0] = np.zeros(SHAPE)
    np.testing.assert_allclose(fisher(merge, experts, fishers), experts[1], rtol=1e-12)
    fishers[1] = np.zeros(SHAPE)
    np.testing.assert_allclose(fisher(merge, experts, fishers), np.mean(experts, 0), rtol=1e-12)
    favoured = fisher(merge, experts, fishers, preset="reference")
    np.testing.assert_allclose(favoured, experts[0], rtol=1e-12)
    first = fisher(merge, experts, fishers, shared={"uninformed": "first"})
    np.testing.assert_allclose(first, experts[0], rtol=1e-12)


def test_fisher_stays_between_its_experts_however_small_the_fishers(merge):
    experts = [x.astype(np.float32) for x in draw(3)]
    fishers = [f.astype(np.float32) for f in curvatures(3, size=1e-38)]
    found = fisher(merge, experts, fishers, shared={"normalize": "none"})
    exact = [x.astype(np.float64) for x in (*experts, *fishers)]
    expected = sum(f * x for f, x in zip(exact[3:], exact[:3], strict=True)) / sum(exact[3:])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    low, high = np.min(experts, axis=0), np.max(experts, axis=0)
    assert (found >= low - 1e-6).all()
    assert (found <= high + 1e-6).all()


def test_a_floor_raises_the_first_expert_or_all(merge):
    experts, fishers = draw(2), curvatures(2, size=0.1)
    for on, raised in (("first", [True, False]), ("all", [True, True])):
        shared = {"floor": 0.1, "floor_on": on, "normalize": "none"}
        f = [np.maximum(x, 0.1) if r else x for x, r in zip(fishers, raised, strict=True)]
        expected = (f[0] * experts[0] + f[1] * experts[1]) / (f[0] + f[1])
        np.testing.assert_allclose(fisher(merge, experts, fishers, shared=shared), expected)


@pytest.mark.parametrize("sizes", [(1e-8, 1e-7), (1.0, 3.0)])
def test_presets_divide_by_norms_of_fishers_as_they_are(merge, sizes):
    """Divided by norms taken after a floor or constant, Fishers of 1e-8 give the plain mean in all of them."""
    experts = draw(2, shape=(8, 20))
    fishers = [f * s for f, s in zip(curvatures(2, shape=(8, 20)), sizes, strict=True)]
    norms = [np.linalg.norm(f) for f in fishers]

    def average(shares):
        return (shares[0] * experts[0] + shares[1] * experts[1]) / (shares[0] + shares[1])

    floored = [np.maximum(fishers[0], 1e-6), fishers[1]]
    expected = {"reference": average([f / n for f, n in zip(floored, norms, strict=True)])}
    for preset, constant in (("mergelm", 1e-6), ("bloomberg", 1e-10)):
        added = [(f + constant) / (n + constant) for f, n in zip(fishers, norms, strict=True)]
        expected[preset] = average(added)
    for preset, theirs in expected.items():
        found = fisher(merge, experts, fishers, preset=preset)
        np.testing.assert_allclose(found, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("preset", "over_model"), [("mergelm", True), ("bloomberg", False)])
def test_presets_say_over_what_norms_run(preset, over_model):
    import torch

    from weightsmith import merge_state_dicts

    drawn = np.random.default_rng(3)
    sizes = {"a": 1.0, "b": 50.0}
    experts = [{n: drawn.normal(size=SHAPE) for n in sizes} for _ in (0, 1)]
    fishers = [{n: drawn.exponential(size=SHAPE) * sizes[n] ** i for n in sizes} for i in (0, 1)]
    found = merge_state_dicts(
        "fisher",
        [{n: torch.from_numpy(x) for n, x in e.items()} for e in experts],
        statistics=[{n: torch.from_numpy(x) for n, x in f.items()} for f in fishers],
        preset=preset,
    )
    constant = 1e-6 if over_model else 1e-10
    for name in sizes:
        shares = []
        for f in fishers:
            over = list(f.values()) if over_model else [f[name]]
            norm = np.sqrt(sum(np.sum(x * x) for x in over))
            shares.append((f[name] + constant) / (norm + constant))
        expected = sum(s * e[name] for s, e in zip(shares, experts, strict=True)) / sum(shares)
        np.testing.assert_allclose(found[name].numpy(), expected, rtol=1e-11)


def test_gradients_of_samples_are_squared_before_they_are_summed(merge):
    # MergeLM and FusionBench square the gradient of the batch's sum: cross terms, and 0 where samples cancel.
    experts = draw(2)
    gradients = [[np.ones(SHAPE), -np.ones(SHAPE)], [np.full(SHAPE, 2.0), np.zeros(SHAPE)]]
    found = merge(
        "fisher",
        None,
        experts,
        statistics=gradients,
        kind="gradients",
        shared={"normalize": "none"},
    )
    np.testing.assert_allclose(found, (experts[0] + 2 * experts[1]) / 3, rtol=1e-12)


# RCP --------------------------------------------------------------------------------------------------------------


def rcp(merge, base, experts, gradients, **shared):
    return merge("rcp", base, experts, statistics=gradients, kind="gradients", shared=shared)


@pytest.mark.parametrize("prior", ["weighted", "fisher"])
def test_rcp_counts_the_votes_of_its_formula(merge, prior):
    base, reasoning, *domains = draw(4)
    gradients = [list(draw(5, s)) for s in (7, 8, 9)]
    f = np.mean([(g * reasoning if prior == "weighted" else g) ** 2 for g in gradients[0]], axis=0)
    expected = reasoning.copy()
    for domain, own in zip(domains, gradients[1:], strict=True):
        scores = [g * domain + 0.1 * f * (reasoning - domain) ** 2 for g in own]
        votes = sum(np.where(s <= 0, 1, -1) for s in scores)
        expected += np.where(votes > 0, domain - base, 0.0)
    found = rcp(merge, base, [reasoning, *domains], gradients, penalty=0.1, prior=prior)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_rcp_from_a_stored_fisher_is_that_from_the_gradients(merge):
    base, reasoning, domain = draw(3)
    own, theirs = list(draw(4, 7)), list(draw(4, 8))
    spec = registry.get("rcp")
    import torch

    from weightsmith.graph.backends.torch_memory import evaluate

    entries = (
        Statistic("fisher", (source(3),), SHAPE),
        Statistic("gradients", tuple(source(4 + k) for k in range(4)), SHAPE),
    )
    site = Site(Place("w"), SHAPE, statistics=entries)
    graph = spec.build({}, [{}, {}]).combine(source(0), [source(1), source(2)], site)
    arrays = [base, reasoning, domain, np.mean(np.square(own), axis=0), *theirs]
    found = evaluate(graph, [torch.from_numpy(a) for a in arrays]).numpy()
    np.testing.assert_allclose(found, rcp(merge, base, [reasoning, domain], [own, theirs]))


def test_rcp_special_cases(merge):
    base, reasoning, domain = draw(3)
    own, theirs = [np.ones(SHAPE)], list(draw(3, 8))
    kept = rcp(merge, base, [reasoning, domain], [own, theirs], penalty=1e30)
    np.testing.assert_array_equal(kept, reasoning)
    same = rcp(merge, base, [reasoning, base], [own, theirs], penalty=0.0)
    np.testing.assert_array_equal(same, reasoning)
    free = rcp(merge, base, [reasoning, domain], [[np.zeros(SHAPE)], theirs])
    votes = sum(np.where(g * domain <= 0, 1, -1) for g in theirs)
    np.testing.assert_allclose(free, reasoning + np.where(votes > 0, domain - base, 0.0))
    tie = rcp(merge, base, [reasoning, domain], [own, [theirs[0], -theirs[0]]], penalty=0.0)
    np.testing.assert_array_equal(tie, reasoning)


def test_rcp_without_statistics_keeps_the_reasoning_model_or_adds(merge):
    base, reasoning, domain = draw(3)
    kept = merge("rcp", base, [reasoning, domain], statistics=[])
    np.testing.assert_array_equal(kept, reasoning)
    shared = {"without_statistics": "add"}
    added = merge("rcp", base, [reasoning, domain], statistics=[], shared=shared)
    np.testing.assert_allclose(added, reasoning + domain - base, rtol=1e-12)


def test_rcp_needs_signs_of_the_domain(merge):
    base, reasoning, domain = draw(3)
    with pytest.raises(RecipeError, match="needs gradients of single samples"):
        merge("rcp", base, [reasoning, domain], statistics=curvatures(2), kind="fisher")


# Metrics ----------------------------------------------------------------------------------------------------------


def weights(metrics, **shared):
    spec = registry.get("metrics_weighted")
    return np.array(spec.build(shared, each("metric", metrics)).weights())


def test_metrics_become_weights_by_their_formulas():
    losses = np.array([0.5, 1.0, 2.0])
    np.testing.assert_allclose(weights(losses), [4 / 7, 2 / 7, 1 / 7])
    np.testing.assert_allclose(weights(losses, penalty=2.0), [16 / 21, 4 / 21, 1 / 21])
    for by in ("score", "step"):
        np.testing.assert_allclose(weights(losses, by=by), [1 / 7, 2 / 7, 4 / 7])
    raised = np.exp(-3 * losses)
    soft = weights(losses, normalization="softmax", penalty=3.0)
    np.testing.assert_allclose(soft, raised / raised.sum())


@pytest.mark.parametrize("normalization", ["power", "softmax"])
@pytest.mark.parametrize("by", ["loss", "score"])
def test_metric_weights_sum_to_one_order_the_experts_and_have_their_limits(normalization, by):
    numbers = [3.0, 0.5, 1.5]
    how = {"normalization": normalization, "by": by}
    found = weights(numbers, **how)
    assert found.sum() == pytest.approx(1.0)
    better = [1, 2, 0] if by == "loss" else [0, 2, 1]
    assert list(np.argsort(-found)) == better
    np.testing.assert_allclose(weights(numbers, penalty=0.0, **how), [1 / 3] * 3)
    np.testing.assert_allclose(weights([0.7] * 3, **how), [1 / 3] * 3)
    far = weights(numbers, penalty=1e6, **how)
    assert far[better[0]] == 1.0


def test_metrics_without_a_power_are_refused(merge):
    for bad in (0.0, -1.0):
        with pytest.raises(RecipeError, match="softmax"):
            merge("metrics_weighted", None, draw(2), per_expert=each("metric", [1.0, bad]))
    with pytest.raises(RecipeError, match="finite"):
        merge("metrics_weighted", None, draw(2), per_expert=each("metric", [1.0, float("nan")]))
    with pytest.raises(RecipeError, match="metric"):
        merge("metrics_weighted", None, draw(2))


@pytest.mark.parametrize("rule", ["power", "softmax"])
@pytest.mark.parametrize("by", ["loss", "score"])
def test_a_huge_penalty_chooses_the_best_checkpoint(merge, rule, by):
    experts = draw(3)
    shared = {"by": by, "normalization": rule, "penalty": 1e308}
    found = merge(
        "metrics_weighted", None, experts, shared=shared, per_expert=each("metric", [3.0, 5.0, 4.0])
    )
    np.testing.assert_allclose(found, experts[0 if by == "loss" else 1], rtol=1e-12)


def test_metrics_weighted_average(merge):
    a, b = draw(2)
    found = merge("metrics_weighted", None, [a, b], per_expert=each("metric", [1.0, 3.0]))
    np.testing.assert_allclose(found, 0.75 * a + 0.25 * b, rtol=1e-12)
