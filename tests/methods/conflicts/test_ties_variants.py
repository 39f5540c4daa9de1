"""What tools call TIES, each rule written element by element from what the tool does, and trims of rows."""

from __future__ import annotations

import math

import numpy as np
import pytest

from weightsmith.methods.parts import registry

from .test_task_vector_methods import close, top


def draw(n, shape=(6, 7), seed=0):
    base, *rest = np.random.default_rng(seed).normal(size=(n + 1, *shape))
    return base, [base + 0.1 * r for r in rest]


def with_weights(*weights):
    return [{"weight": w} for w in weights]


def voted(vectors, how, tie):
    """The elected sign of every element, `tie` where nothing wins."""
    found = np.zeros(vectors[0].shape)
    for place in np.ndindex(found.shape):
        column = [v[place] for v in vectors]
        if how == "count":
            score = sum(1 for x in column if x > 0) - sum(1 for x in column if x < 0)
        else:
            score = math.fsum(column)
        found[place] = (score > 0) - (score < 0) or tie
    return found


def disjoint(vectors, weights, signs, divide):
    """Per element, the weighted values that have the elected sign, summed or divided by their number or weights."""
    found = np.zeros(signs.shape)
    for place in np.ndindex(found.shape):
        agreeing = [
            (w * v[place], w)
            for v, w in zip(vectors, weights, strict=True)
            if v[place] * signs[place] > 0
        ]
        divisor = {
            "sum": 1.0,
            "count": len(agreeing),
            "weights": sum(abs(w) for _, w in agreeing),
        }[divide]
        if agreeing:
            found[place] = sum(x for x, _ in agreeing) / divisor
    return found


# Presets --------------------------------------------------------------------------------------------------------


def test_the_authors_code_keeps_one_more_and_breaks_ties_by_the_majority_of_the_model(merge):
    base, experts = draw(4)
    experts[1].flat[:20] = base.flat[:20] - (experts[0].flat[:20] - base.flat[:20])
    experts[2].flat[:20] = experts[3].flat[:20] = base.flat[:20]
    taus = [top(e - base, int(0.5 * 42) + 1) for e in experts]
    plain = voted(taus, "mass", 0)
    majority = np.sign(plain.sum())
    assert majority != 0
    assert (plain == 0).any()
    signs = np.where(plain == 0, majority, plain)
    expected = base + disjoint(taus, [1.0] * 4, signs, "count")
    merged = merge("ties", base, experts, shared={"density": 0.5}, preset="reference")
    close(merged, expected)
    opposite = np.where(plain == 0, -majority, plain)
    other = {"density": 0.5, "zero_sum": "minority"}
    by_minority = merge("ties", base, experts, shared=other, preset="reference")
    close(by_minority, base + disjoint(taus, [1.0] * 4, opposite, "count"))
    assert np.abs(by_minority - merged).max() > 1e-3


def test_fusionbench_adds_what_agrees_and_takes_three_tenths(merge):
    base, experts = draw(3)
    taus = [top(e - base, int(0.2 * 42) + 1) for e in experts]
    signs = voted(taus, "mass", 0)
    signs[signs == 0] = np.sign(signs.sum())
    expected = base + 0.3 * disjoint(taus, [1.0] * 3, signs, "sum")
    close(merge("ties", base, experts, preset="fusionbench"), expected)


def test_peft_elects_without_weights_and_divides_by_the_number_that_agrees(merge):
    base, experts = draw(3)
    weights = (0.2, 3.0, -0.5)
    taus = [top(e - base, int(0.4 * 42)) for e in experts]
    expected = base + disjoint(taus, weights, voted(taus, "mass", 1), "count")
    how = {"shared": {"density": 0.4}, "per_expert": with_weights(*weights), "preset": "peft"}
    merged = merge("ties", base, experts, **how)
    close(merged, expected)
    before = merge(
        "ties", base, experts, **{**how, "shared": {"density": 0.4, "weight_stage": "before"}}
    )
    assert np.abs(before - merged).max() > 1e-3


def test_sd_mecha_counts_signs(merge):
    base, experts = draw(3)
    taus = [top(e - base, int(0.5 * 42) + 1) for e in experts]
    expected = base + 0.7 * disjoint(taus, [1.0] * 3, voted(taus, "count", 0), "count")
    shared = {"density": 0.5, "lambda": 0.7}
    merged = merge("ties", base, experts, shared=shared, preset="sd-mecha")
    close(merged, expected)
    by_mass = merge("ties", base, experts, shared={**shared, "vote": "mass"}, preset="sd-mecha")
    assert np.abs(by_mass - merged).max() > 1e-3


def test_the_example_that_sd_mecha_publishes(merge):
    """Its threshold keeps the 12 elements of magnitude 2 and more; one up and one down elect nothing."""
    first = [[-1, 2, 3, 4], [4, -3, 2, 1], [3, 4, 1, -2], [2, 1, -4, 3]]
    second = [[3, 4, 1, -2], [2, 1, -4, 3], [-1, 2, 3, 4], [4, -3, 2, 1]]
    expected = [[3, 3, 3, 0], [3, -3, 0, 3], [3, 3, 3, 0], [3, -3, 0, 3]]
    experts = [np.array(x, float) for x in (first, second)]
    shared = {"density": 0.75, "trim_count": "floor"}
    merged = merge("ties", np.zeros((4, 4)), experts, shared=shared, preset="sd-mecha")
    np.testing.assert_array_equal(merged, expected)


@pytest.mark.parametrize("preset", registry.get("ties").presets)
def test_every_preset_gives_a_single_expert_its_trimmed_change(merge, preset):
    base, (expert,) = draw(1)
    extra = preset in ("reference", "fusionbench", "sd-mecha")
    shared = {"density": 0.3, "lambda": 1.0, "weight": 1.0}
    close(
        merge("ties", base, [expert], shared=shared, preset=preset),
        base + top(expert - base, int(0.3 * 42) + extra),
    )


# Single variants ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["tensor", "model", "row"])
@pytest.mark.parametrize("density", [0.0, 0.01, 0.5, 0.999, 1.0])
def test_one_more_is_kept_than_the_floor_says(merge, scope, density):
    base, (expert,) = draw(1)
    shared = {"density": density, "trim_scope": scope, "trim_count": "one_more"}
    kept = np.count_nonzero(merge("ties", base, [expert], shared=shared) != base)
    size, rows = (7, 6) if scope == "row" else (42, 1)
    wanted = {0.0: 0, 1.0: size}.get(density, math.floor(density * size) + 1)
    assert kept == rows * wanted


def test_weights_after_the_election_do_not_vote(merge):
    base, experts = draw(3)
    weights = (5.0, 0.1, -1.0)
    for normalize, divide in (("absolute", "weights"), ("count", "count"), ("none", "sum")):
        shared = {"density": 1.0, "weight_stage": "after", "normalize": normalize}
        merged = merge("ties", base, experts, shared=shared, per_expert=with_weights(*weights))
        taus = [e - base for e in experts]
        close(merged, base + disjoint(taus, weights, voted(taus, "mass", 0), divide))


def test_the_number_that_agrees_divides_weighted_votes_too(merge):
    base, experts = draw(3)
    weights = (5.0, 0.1, 1.0)
    weighted = [w * (e - base) for w, e in zip(weights, experts, strict=True)]
    expected = base + disjoint(weighted, [1.0] * 3, voted(weighted, "mass", 0), "count")
    shared = {"density": 1.0, "normalize": "count"}
    close(merge("ties", base, experts, shared=shared, per_expert=with_weights(*weights)), expected)


def test_the_largest_of_weights_of_both_signs_after_the_election(merge):
    """+3, +2 and -1 elect +; with weights 1, -2 and 1 the agreeing ones are +3 and -4."""
    taus = [np.array([3.0]), np.array([2.0]), np.array([-1.0])]
    shared = {"density": 1.0, "agreeing": "max", "weight_stage": "after"}
    merged = merge(
        "ties", np.zeros(1), taus, shared=shared, per_expert=with_weights(1.0, -2.0, 1.0)
    )
    np.testing.assert_array_equal(merged, [-4.0])


def test_a_count_of_signs_ignores_sizes_and_zeros(merge):
    taus = [np.array([9.0, 9.0, 1.0]), np.array([-1.0, 0.0, -1.0]), np.array([-2.0, 0.0, 0.0])]
    shared = {"density": 1.0, "vote": "count"}
    np.testing.assert_array_equal(merge("ties", np.zeros(3), taus, shared=shared), [-1.5, 9.0, 0.0])


# Rows -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(6, 7), (2, 3, 8), (9,), (5, 1), (1, 12)])
@pytest.mark.parametrize("density", [0.1, 0.4, 0.5, 0.95])
def test_a_trim_of_rows_keeps_its_share_of_each_by_size_and_then_by_index(
    merge, shape, density, dtype
):
    rng = np.random.default_rng(1)
    base = np.zeros(shape, dtype)
    # Few sizes, so that rows have equals and zeros at every cut.
    expert = rng.integers(-3, 4, size=shape).astype(dtype)
    shared = {"density": density, "trim_scope": "row"}
    merged = merge("ties", base, [expert], shared=shared)
    rows = expert.reshape(-1, shape[-1]).astype(float)
    expected = np.stack([top(row, math.floor(density * row.size)) for row in rows])
    np.testing.assert_array_equal(merged, expected.reshape(shape))


def test_rows_are_trimmed_before_the_election(merge):
    base, experts = draw(3)
    taus = [np.stack([top(row, 3) for row in e - base]) for e in experts]
    shared = {"density": 0.5, "trim_scope": "row"}
    expected = base + disjoint(taus, [1.0] * 3, voted(taus, "mass", 0), "count")
    close(merge("ties", base, experts, shared=shared), expected)


def test_a_trim_of_rows_may_keep_a_minimum_and_restore_the_length_of_each(merge):
    base, (expert,) = draw(1)
    shared = {"density": 0.01, "trim_scope": "row", "keep_at_least": 2, "rescale": "l1"}
    expected = []
    for row in expert - base:
        kept = top(row, 2)
        expected.append(kept * np.abs(row).sum() / np.abs(kept).sum())
    close(merge("ties", base, [expert], shared=shared), base + np.stack(expected))


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (0, 3)])
def test_rows_of_nothing_are_left_alone(merge, shape):
    expert = np.ones(shape, np.float32)
    shared = {"density": 0.5, "trim_scope": "row"}
    merged = merge("ties", np.zeros(shape, np.float32), [expert, expert], shared=shared)
    np.testing.assert_array_equal(merged, np.zeros(shape))


@pytest.mark.parametrize("scope", ["tensor", "model", "row"])
def test_one_more_than_the_decimal_share(merge, scope):
    """0.29 of 100 is 29, though the float 0.29 times 100 is below it."""
    expert = np.arange(1.0, 101.0, dtype=np.float32)[None, :]
    shared = {"density": 0.29, "trim_scope": scope, "trim_count": "one_more"}
    assert np.count_nonzero(merge("ties", expert * 0.0, [expert], shared=shared)) == 30
