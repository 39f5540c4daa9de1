"""Directions that two tasks share, or that a task lacks, in float64: LAPACK's own error makes no direction of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from weightsmith.graph.singular import Spectrum
from weightsmith.methods.directions.knots import JointBasis
from weightsmith.methods.parts.matrices import MatrixView
from weightsmith.methods.parts.spectra import Decomposition
from weightsmith.tensors.dtypes import DType

IN_FLOAT64 = {"stored": DType.FLOAT64}


def task(shape, seed):
    return np.random.default_rng(seed).normal(size=shape) * 0.05


def base_of(shape, seed):
    return np.random.default_rng([seed, 1]).normal(size=shape) * 0.3


def led(tau, k):
    u, s, v = np.linalg.svd(tau, full_matrices=False)
    return u[:, :k], s[:k], v[:k]


def polar(matrix, rank):
    u, _, v = np.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] @ v[:rank]


def decorrelated(parts, rank):
    """polar(U) S polar(V)^T of which `rank` directions are known to be there."""
    left = polar(np.concatenate([u for u, _, _ in parts], 1), rank)
    right = polar(np.concatenate([v.T for _, _, v in parts], 1), rank)
    return (left * np.concatenate([s for _, s, _ in parts])) @ right.T


@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (8, 8), (4, 8)])
@pytest.mark.parametrize("factor", [-1.0, 2.0])
def test_tsv_m_finds_that_a_multiple_of_a_task_has_its_directions(shape, factor, merge):
    k = max(1, min(shape) // 3)
    for seed in range(60):
        base, tau, other = base_of(shape, seed), task(shape, [seed, 2]), task(shape, [seed, 3])
        u, s, v = led(tau, k)
        twin = (u, abs(factor) * s, np.sign(factor) * v)
        expected = decorrelated([(u, s, v), twin, led(other, k)], 2 * k)
        experts = [base + tau, base + factor * tau, base + other]
        found = merge("tsv_m", base, experts, **IN_FLOAT64) - base
        np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("gap", [1e-3, 1e-5, 1e-7])
def test_a_cut_beside_a_close_value_leaves_the_directions_of_a_multiple_known(gap, merge):
    """Rounding turns what is kept by its share of the gap to what is not, differently in either task."""
    shape, values = (8, 12), np.array([1.0, 0.5, 0.5 * (1.0 - gap), 0.3, 0.2, 0.1, 0.05, 0.02])
    for seed in range(20):
        u, _, v = np.linalg.svd(task(shape, [seed, 2]), full_matrices=False)
        base, tau, other = base_of(shape, seed), (u * values) @ v, task(shape, [seed, 3]) * 10.0
        parts = [(u[:, :2], values[:2], v[:2]), (u[:, :2], values[:2], -v[:2]), led(other, 2)]
        expected = decorrelated(parts, 4)
        experts = [base + tau, base - tau, base + other]
        found = merge("tsv_m", base, experts, **IN_FLOAT64) - base
        np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("shape", [(4, 8), (8, 12), (8, 8), (12, 8)])
@pytest.mark.parametrize("rank", [1, 2])
def test_iso_cts_sends_no_strength_where_tasks_of_low_rank_have_nothing(shape, rank, merge):
    """Where all directions of the sum are common ones, those of single tasks are rounding."""
    m, n = shape
    for seed in range(60):
        rng = np.random.default_rng(seed)
        base = rng.normal(size=shape) * 0.3
        taus = [rng.normal(size=(m, rank)) @ rng.normal(size=(rank, n)) * 0.05 for _ in range(3)]
        u, s, v = led(sum(taus), min(m, n, 3 * rank))
        own = min(round((min(m, n) - int(0.8 * min(m, n) + 1e-9)) / 3), min(m, n) // 3)
        if len(s) > min(m, n) - 3 * own:
            continue
        expected = u @ v * s.mean()
        found = merge("iso_cts", base, [base + t for t in taus], **IN_FLOAT64) - base
        np.testing.assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize("shape", [(12, 8), (8, 12), (8, 8)])
def test_iso_c_has_the_rank_of_its_tasks(shape, merge):
    m, n = shape
    for seed in range(60):
        rng = np.random.default_rng(seed)
        base = rng.normal(size=shape) * 0.3
        tau = rng.normal(size=(m, 2)) @ rng.normal(size=(2, n)) * 0.05
        u, s, v = led(tau, 2)
        found = merge("iso_c", base, [base + tau], **IN_FLOAT64) - base
        np.testing.assert_allclose(found, u @ v * s.mean(), atol=1e-7)


@pytest.mark.parametrize("library", [np, torch], ids=["numpy", "torch"])
def test_no_task_of_knots_votes_in_directions_of_another(library):
    """Tasks on rows of their own share none, though LAPACK mixes those of neighbouring values a little."""
    view = MatrixView((8, 12), 1, 8, 12)
    joint = JointBasis(False, False, Decomposition(stored=DType.FLOAT64), view, "w")
    for seed in range(60):
        base = base_of((8, 12), seed)
        taus = [task((8, 12), [seed, i]) for i in range(2)]
        taus[0][1::2], taus[1][0::2] = 0.0, 0.0
        arrays = [t if library is np else torch.from_numpy(t) for t in [*taus, base]]
        _, first, second, *_ = joint(library, *arrays)
        owned = np.stack([(np.asarray(c) != 0).any(1) for c in (first, second)])
        assert (owned.sum(0) == 1).all()


@pytest.mark.parametrize("gap", [1e-3, 1e-5, 1e-7])
def test_tasks_without_a_common_direction_keep_their_sum_in_svc(gap, merge):
    """Neighbouring values, one of either task, are mixed by rounding in the sum's directions."""
    for seed in range(20):
        base, taus = base_of((12, 12), seed), [np.zeros((12, 12)) for _ in range(2)]
        for i, tau in enumerate(taus):
            u, _, v = np.linalg.svd(task((6, 6), [seed, i]))
            tau[i::2, i::2] = (u * np.array([1.0, 0.8, 0.6, 0.4, 0.3, 0.2]) * (1.0 + gap * i)) @ v
        found = merge("svc", base, [base + t for t in taus], **IN_FLOAT64) - base
        np.testing.assert_allclose(found, sum(taus), atol=1e-6)


def test_the_tolerance_has_room_for_the_arithmetic_of_float64():
    wide = np.zeros((6, 40))
    assert Decomposition().cutoff(np, wide) == 8 * 40 * 2.0**-52
    assert Decomposition().cutoff(np, wide.astype(np.float32)) == 40 * 2.0**-23
    assert Decomposition(tolerance=1e-3).cutoff(np, wide) == 1e-3


def spectrum(values, beyond):
    count = len(values)
    return Spectrum(np.eye(9)[:, :count], np.array(values), np.eye(count, 7), None, beyond)


def test_an_error_turns_directions_by_its_share_of_the_gap():
    how = Decomposition(stored=DType.FLOAT32)
    exact = 8 * 9 * 2.0**-52 * 2.0
    found = how.turns(np, spectrum([2.0, 1.0, 0.5], 0.25), 1e-6)
    np.testing.assert_allclose(found, (1e-6 + exact) / np.array([1.75, 0.75, 0.25]), rtol=1e-12)
    # Unknown but for 1e-4; and never less than what an error is of the value itself.
    np.testing.assert_allclose(how.turns(np, spectrum([2.0, 1.0], 1.0), 1e-6)[1], 1e-4)
    np.testing.assert_allclose(how.turns(np, spectrum([2.0, 1.0], 0.9), 0.5), [0.25, 0.5])
    assert not Decomposition(tolerance=0.0).turns(np, spectrum([2.0, 1.0], 0.5), 0.1).any()


def test_directions_of_neighbouring_values_are_mixed_by_their_distance():
    how = Decomposition(stored=DType.FLOAT32)
    exact = 8 * 9 * 2.0**-52 * 2.0
    found = how.mixtures(np, np.array([2.0, 1.9, 1.0, 0.0625]), (9, 7))
    np.testing.assert_allclose(found, exact / np.array([0.1, 0.1, 0.9, 0.0625]), rtol=1e-10)
    assert how.mixtures(np, np.array([1.0, 1.0]), (9, 7)).max() == pytest.approx(1e-6)
    in_float64 = Decomposition(stored=DType.FLOAT64)
    assert in_float64.mixtures(np, np.array([2.0, 1.0]), (9, 7), [1e-9])[0] > 1e-9
