"""The task-arithmetic family against float64 formulas written from the papers."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest

from weightsmith.errors import RecipeError
from weightsmith.graph.random import stream_key


def draw(n, shape=(6, 7), seed=0):
    base, *rest = np.random.default_rng(seed).normal(size=(n + 1, *shape))
    return base, [base + 0.1 * r for r in rest]


def per_expert(**columns):
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-11, atol=1e-12)


def top(x, k):
    """Zero all but the k largest magnitudes; equals by lower index."""
    order = np.lexsort((np.arange(x.size), -np.abs(x).ravel()))
    kept = np.zeros(x.size)
    kept[order[:k]] = x.ravel()[order[:k]]
    return kept.reshape(x.shape)


def elected(vectors, weights, mean):
    weighted = [w * v for w, v in zip(weights, vectors, strict=True)]
    sign = np.sign(sum(weighted))
    agree = [(np.sign(v) == sign) & (v != 0) for v in weighted]
    merged = sum(np.where(a, v, 0) for a, v in zip(agree, weighted, strict=True))
    shares = sum(a * abs(w) for a, w in zip(agree, weights, strict=True))
    return merged / np.where(shares == 0, 1, shares) if mean else merged


def uniform(seed, label, tensor, n):
    """The documented counter-based generator, in 64-bit integers."""
    key0, key1 = stream_key(seed, label, tensor)
    m = 0xFFFFFFFF
    i = np.arange(n, dtype=np.uint64)
    x = ((i & m) + key0) & m
    x ^= x >> np.uint64(17)
    x = (x * np.uint64(0xED5AD4BB)) & m
    x ^= x >> np.uint64(11)
    x = (x + key1 + (i >> np.uint64(32)) * np.uint64(0x9E3779B9)) & m
    x = (x * np.uint64(0xAC4C1B51)) & m
    x ^= x >> np.uint64(15)
    x = (x * np.uint64(0x31848BAB)) & m
    x ^= x >> np.uint64(14)
    return (x >> np.uint64(8)).astype(np.float64) * 2.0**-24


# Task arithmetic ------------------------------------------------------------------------------------------------


def test_task_arithmetic_adds_weighted_deltas(merge):
    base, experts = draw(3)
    w = (1.0, 0.5, -0.25)
    merged = merge(
        "task_arithmetic", base, experts, shared={"lambda": 0.3}, per_expert=per_expert(weight=w)
    )
    close(merged, base + 0.3 * sum(x * (e - base) for x, e in zip(w, experts, strict=True)))


def test_task_arithmetic_normalised_divides_by_the_weights(merge):
    base, experts = draw(2)
    how = {"shared": {"normalize": True}, "per_expert": per_expert(weight=(1.0, 3.0))}
    close(merge("task_arithmetic", base, experts, **how), (experts[0] + 3 * experts[1]) / 4)


def test_task_arithmetic_with_weights_that_cancel_is_not_divided(merge):
    base, (a, b) = draw(2)
    how = {"shared": {"normalize": "signed"}, "per_expert": per_expert(weight=(1.0, -1.0))}
    close(merge("task_arithmetic", base, [a, b], **how), base + a - b)


def test_task_arithmetic_addition_then_negation_is_the_base(merge):
    base, (expert,) = draw(1)
    added = merge("task_arithmetic", base, [expert], shared={"lambda": 0.5})
    close(merge("task_arithmetic", added, [base], shared={"lambda": 1.0}), base)


# TIES -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.0, 0.2, 0.55, 1.0])
@pytest.mark.parametrize("normalize", [True, False])
def test_ties_trims_elects_and_averages(merge, density, normalize):
    base, experts = draw(4)
    w = (1.0, 2.0, 0.5, 1.0)
    shared = {"density": density, "normalize": normalize, "lambda": 1.3}
    merged = merge("ties", base, experts, shared=shared, per_expert=per_expert(weight=w))
    trimmed = [top(e - base, int(density * base.size)) for e in experts]
    close(merged, base + 1.3 * elected(trimmed, w, normalize))


def test_ties_may_take_the_largest_of_those_that_agree(merge):
    base, experts = draw(4)
    weights = (1.0, 0.5, -0.7, 2.0)
    weighted = [w * top(e - base, 21) for w, e in zip(weights, experts, strict=True)]
    sign = np.sign(sum(weighted))
    agreeing = [np.where(np.sign(v) == sign, abs(v), 0.0) for v in weighted]
    shared = {"agreeing": "max", "lambda": 0.8, "trim_scope": "tensor"}
    merged = merge(
        "ties",
        base,
        experts,
        shared=shared,
        per_expert=per_expert(weight=weights, density=(0.5,) * 4),
    )
    close(merged, base + 0.8 * sign * np.max(agreeing, axis=0))


def test_ties_largest_of_one_expert_is_its_trimmed_task_vector(merge):
    base, (expert,) = draw(1)
    shared = {"agreeing": "max", "trim_scope": "tensor"}
    close(merge("ties", base, [expert], shared=shared), base + top(expert - base, 8))


def test_ties_trims_over_the_whole_model_by_default(merge_model):
    small, (small_expert,) = draw(1, (40,))
    large, (large_expert,) = draw(1, (60,), seed=1)
    large_expert = large + 10 * (large_expert - large)
    tensors = {"a": (small, [small_expert], {}), "b": (large, [large_expert], {})}
    merged = merge_model("ties", tensors, shared={"density": 0.3})
    both = top(np.concatenate([small_expert - small, large_expert - large]), 30)
    close(np.concatenate([merged["a"], merged["b"]]), np.concatenate([small, large]) + both)
    per_tensor = merge_model("ties", tensors, shared={"density": 0.3, "trim_scope": "tensor"})
    assert (per_tensor["a"] != small).sum() == 12


def test_ties_model_scope_zero_sum_takes_the_majority_sign_of_the_model(merge_model):
    zeros = np.zeros(3)
    tensors = {
        "a": (zeros, [np.array([1.0, -1.0, 0.0]), np.array([-1.0, 1.0, 0.0])], {}),
        "b": (zeros, [np.array([-1.0, -2.0, 3.0]), np.array([-1.0, -2.0, 3.0])], {}),
    }
    shared = {"density": 1.0, "zero_sum": "majority"}
    merged = merge_model("ties", tensors, shared=shared)
    np.testing.assert_array_equal(merged["a"], [-1, -1, 0])
    np.testing.assert_array_equal(merged["b"], [-1, -2, 3])


@pytest.mark.parametrize(
    ("zero_sum", "expected"), [("zero", 0.0), ("positive", 1.0), ("majority", 0.0)]
)
def test_ties_zero_sums_follow_their_parameter(merge, zero_sum, expected):
    merged = merge(
        "ties",
        np.zeros(1),
        [np.ones(1), -np.ones(1)],
        shared={"density": 1.0, "zero_sum": zero_sum},
    )
    assert merged == [expected]


def test_ties_with_negative_weights_keeps_the_elected_sign_by_default(merge):
    base, (expert,) = draw(1)
    how = {"shared": {"density": 1.0}, "per_expert": per_expert(weight=(-0.5,))}
    close(merge("ties", base, [expert], **how), base - (expert - base))


def test_ties_rescale_restores_the_l1_norm(merge):
    base, (expert,) = draw(1)
    merged = merge("ties", base, [expert], shared={"density": 0.25, "rescale": True})
    assert np.abs(merged - base).sum() == pytest.approx(np.abs(expert - base).sum())
    assert ((merged - base) != 0).sum() == int(0.25 * base.size)


def test_ties_keep_at_least_saves_small_tensors(merge):
    base, (expert,) = draw(1, (5,))
    shared = {"density": 0.1, "trim_scope": "tensor"}
    np.testing.assert_array_equal(merge("ties", base, [expert], shared=shared), base)
    saved = merge("ties", base, [expert], shared={**shared, "keep_at_least": 1})
    close(saved, base + top(expert - base, 1))
    for shape in [(), (0,), (1,)]:
        tiny = np.ones(shape)
        np.testing.assert_array_equal(
            merge("ties", 0 * tiny, [tiny], shared={**shared, "keep_at_least": 2}), tiny
        )


# DARE -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_dare_drops_by_the_counter_generator_and_divides_by_the_density(merge, density):
    base, experts = draw(2)
    facts = {"seed": 7, "labels": ("one", "two")}
    merged = merge("dare_linear", base, experts, shared={"density": density}, **facts)
    kept = [
        np.where(
            uniform(7, label, "layer.weight", base.size).reshape(base.shape) < density, e - base, 0
        )
        / density
        for label, e in zip(facts["labels"], experts, strict=True)
    ]
    close(merged, base + sum(kept))
    close(
        merge("dare_ties", base, experts, shared={"density": density}, **facts),
        base + elected(kept, (1, 1), True),
    )


def test_dare_keeps_a_binomial_share_and_is_unbiased(merge):
    base, expert = np.zeros(200_000), np.ones(200_000)
    merged = merge("dare_linear", base, [expert], shared={"density": 0.3})
    assert set(np.unique(merged)) == {0.0, 1 / 0.3}
    deviation = np.sqrt(0.7 / 0.3 / expert.size)
    assert abs(merged.mean() - 1.0) < 4 * deviation


@pytest.mark.parametrize("density", [0.9, 0.5, 0.1])
def test_dare_has_the_variance_of_its_law(merge, density):
    """tau^2 p / (1 - p) for the probability p to be dropped, at every size of tau."""
    sizes = np.array([1e-3, 0.5, -4.0])
    expert = np.repeat(sizes[:, None], 60_000, axis=1)
    merged = merge("dare_linear", np.zeros_like(expert), [expert], shared={"density": density})
    dropped = 1.0 - density
    law = sizes**2 * dropped / (1.0 - dropped)
    np.testing.assert_allclose(np.mean((merged - expert) ** 2, axis=1), law, rtol=0.05)


def test_dare_depends_on_seed_and_model_but_on_nothing_else(merge):
    base, (expert,) = draw(1, (50, 40))
    first = merge("dare_linear", base, [expert], seed=1, labels=("m",))
    np.testing.assert_array_equal(
        first, merge("dare_linear", base, [expert], seed=1, labels=("m",))
    )
    assert (first != merge("dare_linear", base, [expert], seed=2, labels=("m",))).any()
    assert (first != merge("dare_linear", base, [expert], seed=1, labels=("n",))).any()
    flat = merge("dare_linear", base.ravel(), [expert.ravel()], seed=1, labels=("m",))
    np.testing.assert_array_equal(first.ravel(), flat)


@pytest.mark.parametrize("method", ["dare_linear", "dare_ties", "della", "della_linear"])
def test_random_drops_at_density_one_and_zero_are_exact(merge, method):
    base, (expert,) = draw(1)
    close(merge(method, base, [expert], shared={"density": 1.0}), expert)
    np.testing.assert_array_equal(merge(method, base, [expert], shared={"density": 0.0}), base)


def test_dare_l1_rescale_restores_the_norm(merge):
    base, (expert,) = draw(1, (50, 40))
    merged = merge("dare_linear", base, [expert], shared={"density": 0.1, "rescale": "l1"})
    assert np.abs(merged - base).sum() == pytest.approx(np.abs(expert - base).sum())
    kept = merge("dare_linear", base, [expert], shared={"density": 0.1, "rescale": False})
    close((kept - base)[kept != base], (expert - base)[kept != base])


def test_dare_ties_of_the_authors_trims_after_the_drop(merge):
    base, experts = draw(2, (20, 10))
    merged = merge(
        "dare_ties", base, experts, preset="mergelm", shared={"density": 0.8}, labels=("a", "b")
    )
    dropped = [
        np.where(uniform(0, label, "layer.weight", 200).reshape(base.shape) < 0.8, e - base, 0)
        / 0.8
        for label, e in zip("ab", experts, strict=True)
    ]
    close(merged, base + elected([top(d, 40) for d in dropped], (1, 1), True))


# DELLA ----------------------------------------------------------------------------------------------------------


def magprune(delta, density, epsilon, noise, rescale=True):
    rows = delta.reshape(-1, delta.shape[-1])
    n = rows.shape[1]
    rank = np.argsort(np.argsort(np.abs(rows), axis=1, kind="stable"), axis=1, kind="stable")
    q = density - epsilon + 2 * epsilon * rank / (n - 1) if n > 1 else np.full(rows.shape, density)
    kept = np.where(noise.reshape(rows.shape) < q, rows / q if rescale else rows, 0)
    return kept.reshape(delta.shape)


@pytest.mark.parametrize("shape", [(30,), (6, 7), (5, 1), (3, 4, 5)])
@pytest.mark.parametrize("rescale", [True, False])
def test_della_keeps_by_rank_in_the_row_and_divides_by_its_own_probability(merge, shape, rescale):
    base, experts = draw(2, shape)
    shared = {"density": 0.6, "epsilon": 0.2, "rescale": rescale}
    facts = {"seed": 3, "labels": ("one", "two")}
    kept = [
        magprune(e - base, 0.6, 0.2, uniform(3, label, "layer.weight", base.size), rescale)
        for label, e in zip(facts["labels"], experts, strict=True)
    ]
    close(merge("della_linear", base, experts, shared=shared, **facts), base + sum(kept))
    close(merge("della", base, experts, shared=shared, **facts), base + elected(kept, (1, 1), True))


def test_della_is_unbiased(merge):
    expert = np.random.default_rng(0).normal(size=(1, 40))
    shared = {"density": 0.5, "epsilon": 0.3}
    merged = merge(
        "della_linear", np.zeros((5000, 40)), [np.repeat(expert, 5000, 0)], shared=shared
    )
    np.testing.assert_allclose(merged.mean(0), expert[0], atol=0.15)


@pytest.mark.parametrize(
    ("density", "epsilon"), [(0.9, 0.15), (0.1, 0.15), (0.85, 0.15), (0.15, 0.15)]
)
def test_della_refuses_probabilities_outside_the_unit_interval(merge, density, epsilon):
    base, experts = draw(2)
    with pytest.raises(RecipeError, match=r"'layer\.weight' asks for keep probabilities"):
        merge("della", base, experts, shared={"density": density, "epsilon": epsilon})


# Breadcrumbs ----------------------------------------------------------------------------------------------------


def breadcrumbs(delta, density, gamma):
    n = delta.size
    kept = int(density * n)
    outliers = min(int(gamma * n), n - kept)
    return top(delta, outliers + kept) - top(delta, outliers)


@pytest.mark.parametrize(
    ("density", "gamma"), [(0.5, 0.2), (0.3, 0.0), (0.9, 0.2), (0.14, 0.01), (1.0, 0.3), (0.0, 0.2)]
)
def test_breadcrumbs_keeps_the_middle(merge, density, gamma):
    base, experts = draw(3, (9, 11))
    shared = {"density": density, "gamma": gamma, "lambda": 0.7}
    kept = [breadcrumbs(e - base, density, gamma) for e in experts]
    merged = merge("breadcrumbs", base, experts, shared=shared)
    close(merged, base + 0.7 * sum(kept))
    close(
        merge("breadcrumbs_ties", base, experts, shared=shared),
        base + 0.7 * elected(kept, (1, 1, 1), True),
    )


def test_breadcrumbs_without_outliers_is_a_trim_per_tensor(merge):
    base, experts = draw(2)
    crumbs = merge("breadcrumbs_ties", base, experts, shared={"density": 0.3, "gamma": 0.0})
    trimmed = merge("ties", base, experts, shared={"density": 0.3, "trim_scope": "tensor"})
    np.testing.assert_array_equal(crumbs, trimmed)


@pytest.mark.parametrize("n", [1, 2, 7, 50, 99, 100, 101, 500])
@pytest.mark.parametrize("density", ["0.1", "0.29", "0.5", "0.57", "0.999"])
def test_exactly_floor_of_density_times_size_is_kept_even_among_equals(merge, n, density):
    """In decimals: the float 0.29 times 100 is 28.999999999999996."""
    base, expert = np.zeros(n, np.float32), np.ones(n, np.float32)
    for method, shared in (
        ("breadcrumbs", {"gamma": 0.01}),
        ("ties", {"trim_scope": "tensor"}),
        ("ties", {}),
    ):
        merged = merge(method, base, [expert], shared={**shared, "density": float(density)})
        kept = int(Decimal(density) * n)
        assert merged.sum() == kept
        if method == "breadcrumbs" or shared:  # over the model equal ones are taken by rank
            first = np.flatnonzero(merged)
            np.testing.assert_array_equal(first, np.arange(kept) + (first[0] if kept else 0))


# SCE ------------------------------------------------------------------------------------------------------------


def test_sce_keeps_as_many_elements_as_its_share_says_in_decimals(merge):
    experts = [np.zeros(100), np.arange(1.0, 101.0)]
    merged = merge("sce", np.zeros(100), experts, shared={"select_topk": 0.57})
    assert (merged != 0).sum() == 57


def sce(base, experts, topk, selection="all"):
    deltas = [e - base for e in experts]
    selected = deltas
    if topk < 1:
        spread = np.var(deltas, axis=0)
        mask = top(spread, int((spread > 0).sum() * topk)) != 0
        selected = [np.where(mask, d, 0) for d in deltas]
    energy = np.array([np.sum(d**2) for d in selected])
    w = energy / energy.sum()
    merged = selected if selection == "all" else deltas
    sign = np.where(sum(merged) >= 0, 1, -1)
    agree = [np.sign(d) == sign for d in merged]
    above = sum(x * np.where(a, d, 0) for x, a, d in zip(w, agree, merged, strict=True))
    below = sum(x * a for x, a in zip(w, agree, strict=True))
    return base + above / np.where(below == 0, 1, below)


@pytest.mark.parametrize("topk", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("selection", ["all", "weights"])
def test_sce_selects_calculates_and_erases(merge, topk, selection):
    base, experts = draw(3, (9, 11))
    experts[2] = base + 3 * (experts[2] - base)
    merged = merge("sce", base, experts, shared={"select_topk": topk, "selection": selection})
    close(merged, sce(base, experts, topk, selection))


def test_sce_of_equal_experts_is_that_expert(merge):
    base, (expert,) = draw(1)
    close(merge("sce", base, [expert] * 3, shared={"select_topk": 1.0}), expert)
    # Nothing varies, so nothing is selected; the authors' code only weighs by the selection.
    np.testing.assert_array_equal(merge("sce", base, [expert] * 3), base)
    close(merge("sce", base, [expert] * 3, shared={"selection": "weights"}), expert)


# RAM ------------------------------------------------------------------------------------------------------------


def sparse_experts(n, seed=0):
    rng = np.random.default_rng(seed)
    base = rng.normal(size=(8, 9))
    return base, [
        base + rng.normal(size=base.shape) * (rng.random(base.shape) < 0.4) for _ in range(n)
    ]


@pytest.mark.parametrize("n", [1, 2, 4])
def test_ram_sums_unique_and_averages_shared_changes(merge, n):
    base, experts = sparse_experts(n)
    deltas = [e - base for e in experts]
    active = [np.abs(d) > 1e-5 for d in deltas]
    c = sum(a.astype(int) for a in active)
    total = sum(np.where(a, d, 0) for a, d in zip(active, deltas, strict=True))
    close(merge("ram", base, experts), base + total / np.maximum(c, 1))


def test_ramplus_amplifies_unique_changes(merge):
    base, experts = sparse_experts(3)
    r, alpha = 0.5, 0.9
    deltas = [e - base for e in experts]
    active = [np.abs(d) > 1e-5 for d in deltas]
    c = sum(a.astype(int) for a in active)
    expected = base.copy()
    for a, d in zip(active, deltas, strict=True):
        rho = (a & (c > 1)).sum() / (a & (c == 1)).sum()
        expected += np.where(a & (c == 1), d * (1 + r * np.clip(rho, 0, alpha)), 0)
        expected += np.where(a & (c > 1), d / np.maximum(c, 1), 0)
    close(merge("ramplus_tl", base, experts, shared={"r": r, "alpha": alpha}), expected)
