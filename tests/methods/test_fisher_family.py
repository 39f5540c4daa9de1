"""Averages weighted by stored curvature and metrics: values, special cases and the defects of other implementations."""

from __future__ import annotations

import numpy as np
import pytest

from weightsmith.errors import RecipeError
from weightsmith.methods import registry
from weightsmith.tensors.graph import source
from weightsmith.tensors.site import Site, Statistic

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
    site = Site(
        "w", SHAPE, statistics=tuple(Statistic("fisher", (source(2 + i),), SHAPE) for i in (0, 1))
    )
    graph = spec.build({}, [{}, {}]).combine(None, [source(0), source(1)], site)
    import torch

    from weightsmith.tensors.torch_memory import evaluate_model

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


# OTA --------------------------------------------------------------------------------------------------------------


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
    import torch

    from weightsmith.tensors.torch_memory import evaluate_model

    spec = registry.get("ota")
    site = Site("w", (4,), statistics=(Statistic("adam", (source(2),), (4,)),))
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
    uniform = ota(merge, base, experts, weighted, preset="reference")
    np.testing.assert_allclose(uniform, 2.0, rtol=0.2)
    np.testing.assert_allclose(ota(merge, base, experts, weighted), 2.5, rtol=1e-9)


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


def test_normalized_moments_may_have_any_scale_of_their_own(merge):
    base, *experts = draw(3)
    moments = curvatures(2, size=1e-12)
    scaled = [moments[0], moments[1] * 1e6]
    plain = ota(merge, base, experts, moments)
    assert not np.allclose(ota(merge, base, experts, scaled), plain, rtol=1e-3)
    for rule in ("model", "mean"):
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
    """Power 1 and epsilon 1e-24: of weights of 1e-19 the constant takes nothing, where there are none it decides."""
    base, *experts = draw(4)
    moments = [m * 1e-19 for m in curvatures(3)]
    for m in moments:
        m[0, 0] = 0.0
    moments[2][1, 1] = 0.0
    taus = [e - base for e in experts]
    weights = [m + 1e-24 for m in moments]
    expected = base + sum(q * t for q, t in zip(weights, taus, strict=True)) / sum(weights)
    found = ota(merge, base, experts, moments, preset="hf_ota")
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found[0, 0], np.mean(experts, axis=0)[0, 0], rtol=1e-10)
    roots = ota(merge, base, experts, moments)
    assert np.abs(roots - found).max() > 0.01


def test_ota_without_statistics_is_task_arithmetic_with_weights_that_sum_to_one(merge):
    base, *experts = draw(3)
    found = merge("ota", base, experts, statistics=[], per_expert=each("weight", [3.0, 1.0]))
    np.testing.assert_allclose(found, 0.75 * experts[0] + 0.25 * experts[1], rtol=1e-12)


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

    from weightsmith.tensors.torch_memory import evaluate

    entries = (
        Statistic("fisher", (source(3),), SHAPE),
        Statistic("gradients", tuple(source(4 + k) for k in range(4)), SHAPE),
    )
    site = Site("w", SHAPE, statistics=entries)
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
