"""RegMean, WUDI, OptMerge and the spectral forms: values, identities and degenerate inputs of the one Gram operator."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

from weightsmith import merge_state_dicts
from weightsmith.errors import CompatibilityError, NonFiniteError
from weightsmith.methods.directions.wudi import LeastInterference
from weightsmith.methods.parts import gram, registry
from weightsmith.methods.parts.gram_matrices import require_gram
from weightsmith.tensors.dtypes import DType

RNG = np.random.default_rng(7)
WUDI_FORMS = ["wudi", "iwudi", "swudi", "aswudi", "optmerge"]


def inputs_of(k, n, seed=0):
    x = np.random.default_rng(seed).normal(size=(k, n))
    return x.T @ x


def task(m, n, seed, rank=None):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(m, rank or m)) @ rng.normal(size=(rank or m, n)) * 0.1


def wudi_terms(taus):
    grams = [t.T @ t / np.sum(t * t) for t in taus]
    return sum(t @ g for t, g in zip(taus, grams, strict=True)), sum(grams)


def loss(at, taus):
    return sum(np.sum(((at - t) @ t.T) ** 2) / np.sum(t * t) for t in taus)


# RegMean ----------------------------------------------------------------------------------------------------------


def regmean(merge, experts, grams, **shared):
    return merge("regmean", None, experts, statistics=grams, shared=shared)


def test_regmean_solves_the_stacked_least_squares_problem(merge):
    rng = np.random.default_rng(1)
    xs = [rng.normal(size=(40, 6)) for _ in range(3)]
    ws = [rng.normal(size=(4, 6)) for _ in range(3)]
    outputs = np.concatenate([x @ w.T for x, w in zip(xs, ws, strict=True)])
    expected = np.linalg.lstsq(np.concatenate(xs), outputs, rcond=None)[0].T
    merged = regmean(merge, ws, [x.T @ x for x in xs], alpha=1.0)
    np.testing.assert_allclose(merged, expected, rtol=1e-11)


def test_regmean_satisfies_its_normal_equations_with_weights_and_damping(merge):
    ws = [RNG.normal(size=(3, 5)) for _ in range(2)]
    grams = [inputs_of(30, 5, seed) for seed in (1, 2)]
    merged = merge(
        "regmean",
        None,
        ws,
        statistics=grams,
        shared={"alpha": 0.3},
        per_expert=[{"weight": 2.0}, {"weight": 0.5}],
    )
    damped = [g * 0.3 + np.diag(np.diag(g)) * 0.7 for g in grams]
    residual = 2.0 * (merged - ws[0]) @ damped[0] + 0.5 * (merged - ws[1]) @ damped[1]
    np.testing.assert_allclose(residual, 0.0, atol=1e-11)


def test_regmean_with_alpha_0_is_a_mean_per_input_column(merge):
    ws = [RNG.normal(size=(3, 4)) for _ in range(2)]
    grams = [inputs_of(9, 4, seed) for seed in (3, 4)]
    d = [np.diag(g) for g in grams]
    expected = (ws[0] * d[0] + ws[1] * d[1]) / (d[0] + d[1])
    np.testing.assert_allclose(regmean(merge, ws, grams, alpha=0.0), expected, rtol=1e-12)


def test_regmean_of_equal_grams_is_the_mean_and_ignores_a_common_scale(merge):
    ws = [RNG.normal(size=(3, 5)) for _ in range(3)]
    same = [inputs_of(20, 5, 5)] * 3
    np.testing.assert_allclose(regmean(merge, ws, same), np.mean(ws, axis=0), rtol=1e-11)
    grams = [inputs_of(20, 5, seed) for seed in (6, 7, 8)]
    scaled = regmean(merge, ws, [g * 1e-20 for g in grams])
    np.testing.assert_allclose(scaled, regmean(merge, ws, grams), rtol=1e-9)


def test_regmean_follows_translations_and_changes_of_the_input_basis(merge):
    ws = [RNG.normal(size=(3, 5)) for _ in range(2)]
    grams = [inputs_of(20, 5, seed) for seed in (1, 2)]
    merged = regmean(merge, ws, grams, alpha=1.0)
    moved = regmean(merge, [w + 3.0 for w in ws], grams, alpha=1.0)
    np.testing.assert_allclose(moved, merged + 3.0, atol=1e-10)
    q = np.random.default_rng(3).normal(size=(5, 5))
    inverse = np.linalg.inv(q)
    turned = regmean(merge, [w @ inverse for w in ws], [q @ g @ q.T for g in grams], alpha=1.0)
    np.testing.assert_allclose(turned, merged @ inverse, rtol=1e-7, atol=1e-9)


def test_regmean_leaves_directions_without_inputs_at_the_mean(merge):
    ws = [RNG.normal(size=(3, 8)) * 1e3 for _ in range(2)]
    grams = [inputs_of(2, 8, seed) for seed in (1, 2)]
    merged = regmean(merge, ws, grams, alpha=1.0)
    mean = np.mean(ws, axis=0)
    reached = np.linalg.svd(np.concatenate(grams))[2][:4]
    unreached = np.eye(8) - reached.T @ reached
    np.testing.assert_allclose((merged - mean) @ unreached, 0.0, atol=1e-6)
    residual = sum((merged - w) @ g for w, g in zip(ws, grams, strict=True))
    np.testing.assert_allclose(residual, 0.0, atol=1e-6)
    dead = [np.diag([1.0, 0.0, 2.0]), np.diag([3.0, 0.0, 1.0])]
    small = [RNG.normal(size=(2, 3)) for _ in range(2)]
    columns = regmean(merge, small, dead)
    np.testing.assert_allclose(columns[:, 1], np.mean(small, axis=0)[:, 1], rtol=1e-12)


def test_regmean_of_zero_grams_is_the_mean_and_a_large_ridge_comes_near_it(merge):
    ws = [RNG.normal(size=(3, 5)) for _ in range(2)]
    zero = [np.zeros((5, 5))] * 2
    np.testing.assert_allclose(regmean(merge, ws, zero), np.mean(ws, axis=0), rtol=1e-14)
    grams = [inputs_of(20, 5, seed) for seed in (1, 2)]
    total = sum(grams)
    ridge = 0.5 * np.trace(total) / 5 * np.eye(5)
    mean = np.mean(ws, axis=0)
    numerator = sum((w - mean) @ g for w, g in zip(ws, grams, strict=True))
    expected = mean + numerator @ np.linalg.inv(total + ridge)
    # The weights are 1/2 each, so that the ridge is a share of half the sum's trace: the same solution.
    merged = regmean(merge, ws, grams, alpha=1.0, ridge=0.5)
    np.testing.assert_allclose(merged, expected, rtol=1e-11)


def test_regmean_turns_weights_stored_input_first(merge):
    ws = [RNG.normal(size=(3, 5)) for _ in range(2)]
    grams = [inputs_of(20, 5, seed) for seed in (1, 2)]
    expected = regmean(merge, ws, grams)
    given = merge("regmean", None, [w.T for w in ws], statistics=grams, input_first=True)
    np.testing.assert_allclose(given, expected.T, rtol=1e-12)
    with pytest.raises(CompatibilityError, match="inputs, but its Gram"):
        merge("regmean", None, [w.T for w in ws], statistics=grams)


def test_regmean_takes_stacks_with_a_gram_each_or_one_for_all_and_kernels(merge):
    stack = [RNG.normal(size=(2, 3, 4)) for _ in range(2)]
    each = [np.stack([inputs_of(9, 4, s), inputs_of(9, 4, s + 1)]) for s in (1, 5)]
    merged = regmean(merge, stack, each)
    for e in range(2):
        expected = regmean(merge, [s[e] for s in stack], [g[e] for g in each])
        np.testing.assert_allclose(merged[e], expected, rtol=1e-12)
    shared = regmean(merge, stack, [g[0] for g in each])
    np.testing.assert_allclose(shared[0], merged[0], rtol=1e-12)
    kernels = [RNG.normal(size=(3, 2, 2, 1)) for _ in range(2)]
    flat = regmean(merge, [k.reshape(3, 4) for k in kernels], [g[0] for g in each])
    found = regmean(merge, kernels, [g[0] for g in each])
    np.testing.assert_allclose(found.reshape(3, 4), flat, rtol=1e-12)


def test_regmean_without_grams_is_the_weighted_mean(merge):
    experts = [np.arange(4.0), np.ones(4)]
    found = merge(
        "regmean", None, experts, statistics=[], per_expert=[{"weight": 3.0}, {"weight": 1.0}]
    )
    np.testing.assert_allclose(found, 0.75 * experts[0] + 0.25 * experts[1], rtol=1e-15)


def test_regmean_refuses_a_broken_gram(merge):
    with pytest.raises(NonFiniteError):
        regmean(merge, [np.ones((2, 2))] * 2, [np.full((2, 2), np.nan)] * 2)


# The solver -------------------------------------------------------------------------------------------------------


def test_the_solver_agrees_with_the_pseudo_inverse_on_both_paths():
    residual = RNG.normal(size=(4, 9))
    well, poor = inputs_of(50, 9), inputs_of(5, 9)
    assert gram._direct(np, residual, well, 1e8) is not None
    assert gram._direct(np, residual, poor, 1e8) is None
    for matrix in (well, poor):
        expected = residual @ np.linalg.pinv(matrix, rcond=1e-9, hermitian=True)
        np.testing.assert_allclose(gram.solve(np, residual, matrix, 1e-9), expected, rtol=1e-8)


def test_the_solver_never_amplifies_a_direction_that_is_rounding():
    basis = np.linalg.qr(RNG.normal(size=(6, 6)))[0]
    matrix = basis @ np.diag([1.0, 0.5, 0.2, 0.1, 1e-15, -1e-16]) @ basis.T
    found = gram.solve(np, np.ones((2, 6)), matrix, 1e-10)
    assert np.abs(found).max() < 20


def test_a_gram_matrix_of_zeros_has_no_directions():
    found = gram.directions(np, np.zeros((3, 3)), cutoff=1e-12)
    assert (found.left.shape, found.values.shape, found.right.shape) == ((3, 0), (0,), (0, 3))


def test_wide_and_tall_factors_reduce_to_the_same_step():
    target, start = RNG.normal(size=(2, 4, 6))
    for rows in (3, 9):
        factors = [RNG.normal(size=(rows, 6)) for _ in range(2)]
        problem = gram.Problem(start, [target, -target], factors)
        c = sum(f.T @ f for f in factors)
        expected = (target - start) @ factors[0].T @ factors[0]
        expected = expected + (-target - start) @ factors[1].T @ factors[1]
        expected = start + expected @ np.linalg.pinv(c)
        assert (problem.reduced(np).lift is None) == (2 * rows >= 6)
        np.testing.assert_allclose(problem.solution(np, 1e-12), expected, rtol=1e-9)
    wide = gram.Problem(start, [target], [RNG.normal(size=(2, 6))])
    assert wide.reduced(np).gram.shape == (2, 2)


# WUDI -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "n"), [(4, 20), (12, 5), (6, 6)])
def test_wudi_is_the_minimum_norm_solution(merge, m, n):
    base = RNG.normal(size=(m, n))
    taus = [task(m, n, seed) for seed in (1, 2, 3)]
    d, c = wudi_terms(taus)
    expected = base + d @ np.linalg.pinv(c, rcond=1e-10, hermitian=True)
    found = merge("wudi", base, [base + t for t in taus])
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-8)
    assert loss(found - base, taus) <= loss(sum(taus), taus)


def test_wudi_of_orthogonal_tasks_is_their_sum_and_of_one_task_itself(merge):
    basis = np.linalg.qr(RNG.normal(size=(8, 8)))[0]
    taus = [RNG.normal(size=(5, 3)) @ basis[:3], RNG.normal(size=(5, 3)) @ basis[3:6]]
    base = np.zeros((5, 8))
    np.testing.assert_allclose(merge("wudi", base, taus), sum(taus), atol=1e-12)
    np.testing.assert_allclose(merge("wudi", base, taus[:1]), taus[0], atol=1e-13)


@pytest.mark.parametrize("name", ["wudi"])
def test_identical_experts_give_their_task_vector_whatever_its_rank(merge, name):
    base = RNG.normal(size=(6, 9))
    for rank in (1, 2, 6):
        tau = task(6, 9, rank, rank)
        merged = merge(name, base, [base + tau] * 3)
        np.testing.assert_allclose(merged, base + tau, atol=1e-12)


def test_identical_experts_of_numbers_without_rounding_are_exact_since_wudi_starts_from_their_mean():
    base = np.random.default_rng(2).integers(-9, 9, (4, 6)).astype(np.float64)
    tau = np.random.default_rng(3).normal(size=(4, 6))
    found = LeastInterference((1.0, 1.0), None, None, DType.FLOAT32)(np, [tau, tau, base])
    np.testing.assert_array_equal(found, tau)


@pytest.mark.parametrize("name", WUDI_FORMS)
def test_a_zero_task_vector_takes_no_part(merge, name):
    base = RNG.normal(size=(5, 7))
    experts = [base + task(5, 7, s) for s in (1, 2)]
    merged = merge(name, base, [*experts, base], shared={"start": "zero"} if name != "wudi" else {})
    assert np.isfinite(merged).all()
    if name in ("wudi", "iwudi", "swudi"):
        expected = merge(name, base, experts, shared={"start": "zero"} if name != "wudi" else {})
        np.testing.assert_allclose(merged, expected, atol=1e-9)


@pytest.mark.parametrize("name", ["wudi", "iwudi", "swudi", "aswudi"])
def test_rotations_of_the_inputs_carry_over(merge, name):
    base = RNG.normal(size=(5, 7))
    experts = [base + task(5, 7, s) for s in (1, 2, 3)]
    q = np.linalg.qr(np.random.default_rng(2).normal(size=(7, 7)))[0]
    turned = merge(name, base @ q, [e @ q for e in experts])
    np.testing.assert_allclose(turned, merge(name, base, experts) @ q, atol=1e-8)


def adam(taus, steps, rate):
    point = sum(taus)
    first = second = np.zeros_like(point)
    for t in range(1, steps + 1):
        gradient = sum(2 * (point - x) @ x.T @ x / np.sum(x * x) for x in taus)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        scaled = (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
        point = point - rate * scaled
    return point


@pytest.mark.parametrize(("m", "n"), [(3, 16), (9, 4)])
def test_wudi_by_adam_is_the_reference_schedule_and_repeats_its_bits(merge, m, n):
    taus = [task(m, n, seed) for seed in (1, 2)]
    base = np.zeros((m, n))
    found = merge("wudi", base, taus, preset="reference")
    np.testing.assert_allclose(found, adam(taus, 300, 1e-5), rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(found, merge("wudi", base, taus, preset="reference"))
    assert loss(found, taus) < loss(sum(taus), taus)
    still = merge("wudi", base, taus, preset="reference", shared={"steps": 0})
    np.testing.assert_allclose(still, sum(taus), rtol=1e-14)


def test_wudi_averages_what_is_no_matrix_and_leaves_it_alone_in_the_original(merge):
    base = np.zeros(4)
    experts = [np.arange(4.0), np.ones(4)]
    np.testing.assert_allclose(merge("wudi", base, experts), np.mean(experts, axis=0))
    np.testing.assert_array_equal(merge("wudi", base, experts, preset="original"), base)
    matrix = [np.diag([1.0, 2.0]), np.ones((2, 2))]
    embedded = merge("wudi", np.zeros((2, 2)), matrix, role="embedding")
    np.testing.assert_allclose(embedded, np.mean(matrix, axis=0))


@pytest.mark.parametrize("m", [4, 12], ids=["fewer rows than inputs", "more rows than inputs"])
@pytest.mark.parametrize("tolerance", [0.6, 0.8])
def test_wudi_leaves_directions_that_count_as_zero_at_the_base(merge, m, tolerance):
    base = RNG.normal(size=(m, 9))
    taus = [task(m, 9, seed) for seed in (1, 2, 3)]
    rows = np.concatenate([t / np.linalg.norm(t) for t in taus])
    _, values, right = np.linalg.svd(rows, full_matrices=False)
    right = right[values > tolerance * values[0]]
    assert 0 < len(right) < min(9, 3 * m)
    # min over X of sum_i ||(X V - tau_i) R_i^T||^2, by least squares.
    factors = [t / np.linalg.norm(t) for t in taus]
    images = np.concatenate([t @ r.T for t, r in zip(taus, factors, strict=True)], 1)
    inside, *_ = np.linalg.lstsq(np.concatenate([r @ right.T for r in factors]), images.T)
    found = merge("wudi", base, [base + t for t in taus], shared={"rank_tolerance": tolerance})
    np.testing.assert_allclose(found, base + inside.T @ right, atol=1e-11)


# Filters ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def tasks():
    return [task(5, 12, seed) for seed in (1, 2, 3)]


def spectral(merge, name, taus, **shared):
    return merge(name, np.zeros_like(taus[0]), taus, shared=shared)


def test_filters_end_at_the_minimiser_and_begin_at_the_start(merge, tasks):
    minimiser = merge("wudi", np.zeros((5, 12)), tasks)
    for start in ("sum", "mean", "zero"):
        ends = [
            spectral(merge, "iwudi", tasks, start=start, filter="none"),
            spectral(merge, "iwudi", tasks, start=start, time=1e9),
            spectral(merge, "iwudi", tasks, start=start, filter="tikhonov", ridge=0.0),
            spectral(merge, "swudi", tasks, start=start, time=1e9, rank_share=1.0),
            spectral(merge, "aswudi", tasks, start=start, rank_rule="cumulative", level=1.0),
        ]
        for end in ends:
            np.testing.assert_allclose(end, minimiser, atol=1e-9)
    begins = {"sum": sum(tasks), "mean": sum(tasks) / 3, "zero": np.zeros((5, 12))}
    for start, expected in begins.items():
        for shared in ({"time": 0.0}, {"filter": "landweber", "iterations": 0}):
            found = spectral(merge, "iwudi", tasks, start=start, **shared)
            np.testing.assert_allclose(found, expected, atol=1e-14)
    np.testing.assert_allclose(
        spectral(merge, "swudi", tasks, rank_share=0.0), sum(tasks), atol=1e-14
    )


def test_the_exponential_filter_is_gradient_flow(merge, tasks):
    d, c = wudi_terms(tasks)
    flow = solve_ivp(
        lambda _, x: (d - x.reshape(5, 12) @ c).reshape(-1),
        (0.0, 7.0),
        sum(tasks).reshape(-1),
        rtol=1e-10,
        atol=1e-12,
    )
    found = spectral(merge, "iwudi", tasks, time=7.0)
    np.testing.assert_allclose(found, flow.y[:, -1].reshape(5, 12), atol=1e-8)


def test_the_landweber_filter_is_gradient_descent_and_tikhonov_a_ridge(merge, tasks):
    d, c = wudi_terms(tasks)
    point, rate = sum(tasks), 0.9 / np.linalg.eigvalsh(c)[-1]
    for _ in range(12):
        point = point - rate * (point @ c - d)
    found = spectral(merge, "iwudi", tasks, filter="landweber", iterations=12)
    np.testing.assert_allclose(found, point, atol=1e-10)
    start = sum(tasks)
    ridge = start + (d - start @ c) @ np.linalg.inv(c + 0.05 * np.eye(12))
    found = spectral(merge, "iwudi", tasks, filter="tikhonov", ridge=0.05)
    np.testing.assert_allclose(found, ridge, atol=1e-10)


@pytest.mark.parametrize("share", [0.25, 0.65])
def test_swudi_moves_the_leading_directions_only(merge, tasks, share):
    d, c = wudi_terms(tasks)
    values, vectors = np.linalg.eigh(c)
    kept = np.arange(12) >= 12 - np.ceil(share * 12)
    f = np.where(kept, 1 - np.exp(-values * 40.0), 0.0)
    start = sum(tasks)
    minimiser = d @ np.linalg.pinv(c, rcond=1e-10, hermitian=True)
    expected = start + (minimiser - start) @ (vectors * f) @ vectors.T
    found = spectral(merge, "swudi", tasks, rank_share=share, time=40.0)
    np.testing.assert_allclose(found, expected, atol=1e-8)


# OptMerge ---------------------------------------------------------------------------------------------------------


def top(matrix, k):
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :k] * s[:k]) @ v[:k], s[:k], v[:k]


@pytest.mark.parametrize("flavour", ["full", "lora"])
def test_optmerge_is_its_closed_form(merge, tasks, flavour):
    mean = sum(tasks) / 3
    k = 5 // 3
    parts = [top(t, k) for t in tasks]
    grams = [(v.T * s**2) @ v / np.sum(t * t) for (_, s, v), t in zip(parts, tasks, strict=True)]
    centred = [top(t - mean, k)[0] + mean for t in tasks]
    targets = centred if flavour == "full" else [p[0] for p in parts]
    numerator = sum(t @ g for t, g in zip(targets, grams, strict=True))
    expected = numerator @ np.linalg.pinv(sum(grams), rcond=1e-10, hermitian=True)
    found = spectral(merge, "optmerge", tasks, solver="closed", flavour=flavour, start="zero")
    np.testing.assert_allclose(found, expected, atol=1e-9)
    start = sum(tasks) if flavour == "full" else mean
    reached = np.linalg.svd(np.concatenate(grams))[2][: 3 * k]
    stays = start @ (np.eye(12) - reached.T @ reached)
    begun = spectral(merge, "optmerge", tasks, solver="closed", flavour=flavour)
    np.testing.assert_allclose(begun, expected + stays, atol=1e-9)


@pytest.mark.parametrize(("m", "n"), [(5, 12), (9, 6)])
def test_optmerge_is_the_references_adam_by_default(merge, m, n):
    taus = [task(m, n, seed) * 0.1 for seed in (1, 2, 3)]
    mean, k = sum(taus) / 3, min(m, n) // 3
    grams, targets = [], []
    for tau in taus:
        _, s, v = top(tau, k)
        grams.append((v.T * s**2) @ v / np.sum(tau * tau))
        targets.append(top(tau - mean, k)[0] + mean)
    point = sum(taus)
    first = second = np.zeros_like(point)
    for t in range(1, 301):
        gradient = sum(2 * (point - x) @ g for x, g in zip(targets, grams, strict=True))
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        step = (first / (1 - 0.9**t)) / (np.sqrt(second / (1 - 0.999**t)) + 1e-8)
        point = point - 1e-5 * step
    found = merge("optmerge", np.zeros((m, n)), taus)
    assert np.abs(point - sum(taus)).max() > 1e-3
    np.testing.assert_allclose(found, point, rtol=1e-9, atol=1e-12)


def test_optmerge_by_descent_with_momentum_follows_the_reference(merge, tasks):
    parts = [top(t, 1) for t in tasks]
    grams = [(v.T * s**2) @ v / np.sum(t * t) for (_, s, v), t in zip(parts, tasks, strict=True)]
    point, velocity = sum(tasks) / 3, 0.0
    for _ in range(300):
        gradient = sum(2 * (point - p[0]) @ g for p, g in zip(parts, grams, strict=True))
        velocity = 0.9 * velocity + gradient
        point = point - 1e-4 * velocity
    found = merge("optmerge", np.zeros((5, 12)), tasks, preset="lora")
    np.testing.assert_allclose(found, point, atol=1e-10)


def test_optmerge_of_all_directions_without_centring_is_wudi(merge, tasks):
    found = spectral(merge, "optmerge", tasks, solver="closed", flavour="lora", rank_share=1.0)
    np.testing.assert_allclose(found, merge("wudi", np.zeros((5, 12)), tasks), atol=1e-9)


def test_optmerge_keeps_a_direction_of_tensors_with_fewer_rows_than_tasks(merge):
    tasks = [task(2, 6, s) for s in range(4)]
    found = spectral(merge, "optmerge", tasks, solver="closed")
    assert np.isfinite(found).all()
    assert np.abs(found).max() > 0


@pytest.mark.parametrize("name", ["wudi", "optmerge"])
@pytest.mark.parametrize("seed", range(4))
def test_descent_of_one_task_stays_at_it(merge, name, seed):
    """Its gradient is rounding there, of which Adam would make 300 steps of full size."""
    tau = task(7, 9, seed) * 0.1
    shared = {"solver": "adam"} if name == "wudi" else {}
    np.testing.assert_array_equal(merge(name, np.zeros((7, 9)), [tau], shared=shared), tau)


def test_descent_of_tasks_that_cancel_stays_where_it_begins(merge):
    tau = task(7, 9, 1) * 0.1
    merged = merge("wudi", np.zeros((7, 9)), [tau, -tau], preset="reference")
    assert not merged.any()


# All --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WUDI_FORMS)
def test_stacks_and_input_first_matrices_are_taken_one_by_one(merge, name):
    base = RNG.normal(size=(2, 4, 6))
    experts = [base + np.stack([task(4, 6, s), task(4, 6, s + 9)]) for s in (1, 2)]
    merged = merge(name, base, experts)
    for e in range(2):
        one = merge(name, base[e], [x[e] for x in experts])
        np.testing.assert_allclose(merged[e], one, atol=1e-12)
    turned = merge(name, base[0].T, [x[0].T for x in experts], input_first=True)
    np.testing.assert_allclose(turned, merged[0].T, atol=1e-12)


@pytest.mark.parametrize("name", WUDI_FORMS)
def test_bfloat16_like_noise_in_low_rank_task_vectors_is_not_amplified(merge, name):
    rng = np.random.default_rng(5)
    base = rng.normal(size=(24, 40)).astype(np.float32)
    taus = [task(24, 40, s, rank=2).astype(np.float32) for s in (1, 2, 3)]
    merged = merge(name, base, [base + t for t in taus])
    assert np.linalg.norm(merged - base) < 3 * np.linalg.norm(sum(taus))


@pytest.mark.parametrize("name", WUDI_FORMS)
@pytest.mark.parametrize("ratio", [-1.0, 2.0])
def test_rounding_does_not_tell_tasks_apart_that_pull_one_direction(merge, name, ratio):
    """Without rounding nothing distinguishes their inputs, and a compromise between them is the result."""
    for seed in range(8):
        base = np.random.default_rng(100 + seed).normal(size=(6, 6))
        tau = task(6, 6, seed, rank=1) * 0.1
        rounded = [x.astype(np.float32) for x in (base, base + tau, base + ratio * tau, base)]
        merged = merge(name, rounded[0], rounded[1:])
        assert np.abs(merged - rounded[0]).max() <= (1 + abs(ratio)) * np.abs(tau).max()


@pytest.mark.parametrize("name", [*WUDI_FORMS, "regmean"])
def test_the_catalogue_says_what_they_cost(name):
    spec = registry.get(name)
    assert "O(" in spec.cost
    assert all(registry.get(other) for other in spec.generalises)


@pytest.mark.parametrize("method", ["wudi", "iwudi", "swudi", "aswudi"])
def test_opposite_experts_stored_in_bfloat16_cancel_instead_of_amplifying_their_rounding(method):
    """Told as float32 that very rounding is all that tells the two apart, and is solved for."""
    generator = torch.Generator().manual_seed(0)
    base = (torch.randn(128, 128, generator=generator) * 0.02).bfloat16()
    row, column = torch.randn(1, 128, generator=generator), torch.randn(128, 1, generator=generator)
    experts = [(base.float() + s * 2e-3 * column @ row).bfloat16() for s in (1, -1)]
    length = (experts[0].float() - base.float()).norm()

    def merged(dtype: torch.dtype) -> torch.Tensor:
        states = [{"w.weight": e.to(dtype)} for e in experts]
        found = merge_state_dicts(method, states, base={"w.weight": base.to(dtype)})
        return found["w.weight"].float() - base.float()

    assert merged(torch.bfloat16).norm() < 0.05 * length
    if method == "wudi":
        assert merged(torch.float32).norm() > 10.0 * length


def test_a_stored_dtype_leaves_task_vectors_far_above_their_rounding_alone():
    """5 % of the weights, in all directions: what bfloat16 rounds changes the result by a fraction of it."""
    generator = torch.Generator().manual_seed(1)
    base = (torch.randn(96, 96, generator=generator) * 0.02).bfloat16()
    experts = [
        (base.float() + 1e-3 * torch.randn(96, 96, generator=generator)).bfloat16()
        for _ in range(3)
    ]
    narrow, wide = (
        merge_state_dicts(
            "iwudi",
            [{"w.weight": e.to(dtype)} for e in experts],
            base={"w.weight": base.to(dtype)},
        )["w.weight"].float()
        - base.float()
        for dtype in (torch.bfloat16, torch.float32)
    )
    assert (narrow - wide).norm() < 0.15 * wide.norm()


@pytest.mark.parametrize("stored", [DType.BFLOAT16, DType.FLOAT16, DType.FLOAT32, DType.FLOAT64])
@pytest.mark.parametrize("library", [np, torch])
def test_rounding_in_the_stored_dtype_makes_no_gram_matrix_asymmetric(stored, library):
    """Sums over batches that are rounded one by one, (i, j) and (j, i) in other orders; scales of inputs differ."""
    kind = getattr(torch, stored.name.lower())
    work = torch.promote_types(kind, torch.float32)
    scales = torch.logspace(-1.5, 0.5, 200)
    x = torch.randn((40, 16, 200), generator=torch.Generator().manual_seed(0)) * scales
    gram = torch.zeros(200, 200, dtype=kind)
    for batch in x:
        gram += (batch.to(work).T @ batch.to(work)).to(kind)
    backwards = torch.zeros(200, 200, dtype=kind)
    for batch in x.flip(0):
        backwards += (batch.to(work).T @ batch.to(work)).to(kind)
    mixed = gram.triu() + backwards.tril(-1)
    assert not torch.equal(mixed, mixed.T)
    mixed = mixed.float()
    require_gram(library, mixed.numpy() if library is np else mixed, stored, "It")
    for low, high in ((3, 150), (130, 190)):
        wrong = mixed.clone()
        wrong[high, low] += 0.2 * (mixed[high, high] * mixed[low, low]).sqrt()
        stack = torch.stack([gram.float(), wrong])
        message = rf"It is not symmetric: elements \[{low}, {high}\] and \[{high}, {low}\]"
        with pytest.raises(CompatibilityError, match=message):
            require_gram(library, stack.numpy() if library is np else stack, stored, "It")
