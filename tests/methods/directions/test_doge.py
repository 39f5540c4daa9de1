"""DOGE against its least-squares problem solved in full, the code's descent step by step, and its special cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from weightsmith.graph.site import Site
from weightsmith.methods.directions.doge import Surrogate
from weightsmith.methods.parts import registry
from weightsmith.tensors.place import Kind, Place

ETA = 0.07


def draw(n, shape=(12, 9), seed=0):
    base, *rest = np.random.default_rng(seed).normal(size=(n + 1, *shape))
    return base, [base + 0.1 * r for r in rest]


def close(actual, expected, atol=1e-11):
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=atol)


def factors(taus):
    return [ETA / np.linalg.norm(t) for t in taus]


def projector(taus, subspace):
    r = min(taus[0].shape)
    own = [np.linalg.svd(t)[0][:, : r // len(taus)] for t in taus]
    u = np.linalg.svd(np.concatenate(own, 1))[0][:, : int(r / subspace)]
    return u @ u.T


def shift(taus, subspace, *, rows):
    """The minimiser of least norm, from the whole linear system: one equation per task, or per task and row."""
    m, n = taus[0].shape
    outside = np.eye(m) - projector(taus, subspace)
    lam = factors(taus)
    merged = sum(f * t for f, t in zip(lam, taus, strict=True))
    equations, wanted = [], []
    for tau in taus:
        for part in [[i] for i in range(m)] if rows else [list(range(m))]:
            picked = np.zeros_like(tau)
            picked[part] = tau[part]
            equations.append((outside @ picked).ravel() * sum(lam))
            wanted.append((picked * (tau - merged)).sum())
    solution = np.linalg.lstsq(np.array(equations), np.array(wanted), rcond=1e-12)[0]
    return solution.reshape(m, n)


def merged_by_hand(base, experts, delta, density=1.0):
    result = base.copy()
    taus = [e - base for e in experts]
    for factor, tau in zip(factors(taus), taus, strict=True):
        kept = int(density * tau.size)
        mask = np.abs(tau) >= np.sort(np.abs(tau).ravel())[::-1][kept - 1]
        result = result + factor * (tau + delta) * mask
    return result


@pytest.mark.parametrize("shape", [(12, 9), (9, 12), (13, 13)])
@pytest.mark.parametrize("objective", ["layer", "rows"])
@pytest.mark.parametrize("subspace", [3.0, 6.0])
def test_doge_solves_its_least_squares_problem(shape, objective, subspace, merge):
    base, experts = draw(3, shape)
    taus = [e - base for e in experts]
    delta = shift(taus, subspace, rows=objective == "rows")
    shared = {"objective": objective, "subspace": subspace, "density": 1.0}
    close(merge("doge", base, experts, shared=shared), merged_by_hand(base, experts, delta), 1e-8)
    assert np.abs(projector(taus, subspace) @ delta).max() < 1e-11


def test_doge_keeps_the_largest_elements_of_each_task_vector(merge):
    base, experts = draw(3)
    taus = [e - base for e in experts]
    delta = shift(taus, 6.0, rows=False)
    close(merge("doge", base, experts), merged_by_hand(base, experts, delta, 0.3), 1e-9)


def test_the_mask_is_counted_over_the_matrices_of_the_whole_model(merge_model):
    small, large = draw(2, (10, 8), 0), draw(2, (10, 8), 1)
    large = (large[0], [large[0] + 100 * (e - large[0]) for e in large[1]])
    vector = draw(2, (500,), 2)
    tensors = {"small": (*small, {}), "large": (*large, {}), "vector": (*vector, {})}
    merged = merge_model("doge", tensors, shared={"density": 0.4})
    np.testing.assert_array_equal(merged["small"], small[0])
    assert (merged["large"] != large[0]).mean() > 0.9
    np.testing.assert_array_equal(merged["vector"], vector[0])


def test_descent_is_the_codes_adam(merge):
    base, experts = draw(2, (8, 6))
    taus = [torch.from_numpy(e - base) for e in experts]
    lam = [ETA / t.norm() for t in taus]
    p = torch.from_numpy(projector([t.numpy() for t in taus], 3.0))
    delta = torch.zeros(8, 6, dtype=torch.float64, requires_grad=True)
    first = second = torch.zeros_like(delta)
    for step in range(1, 41):
        goal = sum(f * (t + delta) for f, t in zip(lam, taus, strict=True))
        loss = sum(((t * (t - goal)).sum(1) ** 2).sum() for t in taus)
        (gradient,) = torch.autograd.grad(loss, delta)
        gradient = gradient - p @ gradient
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        mean, spread = first / (1 - 0.9**step), second / (1 - 0.999**step)
        delta = (delta - 1e-3 * mean / (spread.sqrt() + 1e-8)).detach().requires_grad_()
    shared = {"steps": 40, "rate": 1e-3, "subspace": 3.0, "density": 1.0}
    merged = merge("doge", base, experts, shared=shared, preset="fusionbench")
    close(merged, merged_by_hand(base, experts, delta.detach().numpy()), 1e-10)


def problem(rows, taus):
    lam = factors(taus)
    merged = sum(f * t for f, t in zip(lam, taus, strict=True))
    return Surrogate(np, taus, merged, sum(lam), rows, np.zeros((8, 0)))


@pytest.mark.parametrize("rows", [False, True])
def test_the_exact_minimiser_lies_below_every_descent(rows):
    taus = [0.3 * r for r in np.random.default_rng(0).normal(size=(3, 8, 6))]
    surrogate = problem(rows, taus)
    best = surrogate.conjugate_gradients(400) if rows else surrogate.closed(1e-12)
    losses = [surrogate.loss(surrogate.descended(steps, 1e-2)) for steps in (0, 10, 100)]
    assert losses[0] > losses[1] > losses[2] > surrogate.loss(best)
    assert surrogate.loss(best) < 1e-15 * losses[0]


def test_without_a_shift_the_task_vectors_have_equal_lengths(merge):
    base, experts = draw(3)
    shared = {"solver": "adam", "steps": 0, "density": 1.0}
    taus = [e - base for e in experts]
    expected = base + sum(ETA * t / np.linalg.norm(t) for t in taus)
    close(merge("doge", base, experts, shared=shared), expected)
    assert np.linalg.norm(expected - base) <= 3 * ETA


def test_a_task_that_changed_nothing_changes_nothing(merge):
    """Its lambda would be eta / 0."""
    base, experts = draw(2)
    shared = {"density": 1.0}
    alone = merge("doge", base, experts, shared=shared)
    joined = merge("doge", base, [*experts, base], shared={**shared, "subspace": 100.0})
    assert np.isfinite(joined).all()
    close(
        merge("doge", base, [*experts, base], shared={**shared, "subspace": 100.0}),
        merge("doge", base, experts, shared={**shared, "subspace": 100.0}),
    )
    assert np.abs(alone - base).max() > 0
    np.testing.assert_array_equal(merge("doge", base, [base, base]), base)


def test_tasks_inside_the_shared_subspace_are_not_shifted(merge):
    """What the projection leaves of them is rounding, which no division may bring back."""
    rng = np.random.default_rng(0)
    left = np.linalg.qr(rng.normal(size=(12, 12)))[0][:, :1]
    taus = [left @ rng.normal(size=(1, 12)) for _ in range(2)]
    base = np.zeros((12, 12))
    shared = {"density": 1.0, "subspace": 6.0}
    close(
        merge("doge", base, taus, shared=shared),
        sum(ETA * t / np.linalg.norm(t) for t in taus),
        1e-9,
    )


# Directions that are shared alike -----------------------------------------------------------------------------------


def led(tau, k):
    """A projector on the k leading left directions of one matrix."""
    u = np.linalg.svd(tau)[0][:, :k]
    return u @ u.T


def shifted(tau, outside, copies=1):
    """The least Delta outside with <tau, Delta> s = <tau, tau - s tau>, s being the sum of all lambdas."""
    total = copies * ETA / np.linalg.norm(tau)
    free = outside @ tau
    return free * (np.sum(tau * tau) * (1.0 - total) / total / np.sum(free * free))


@pytest.mark.parametrize("shape", [(12, 9), (9, 12), (13, 13)])
@pytest.mark.parametrize("subspace", [2.0, 6.0])
@pytest.mark.parametrize("copies", [1, 3])
def test_the_shared_subspace_of_one_task_is_that_of_its_strongest_directions(
    shape, subspace, copies, merge
):
    """All of its directions have the same singular value beside each other, and so do those of copies."""
    base, (expert, *_) = draw(1, shape)
    tau = expert - base
    r = min(shape)
    outside = np.eye(shape[0]) - led(tau, min(int(r / subspace), r // copies))
    length = copies * ETA / np.linalg.norm(tau)
    expected = base + length * (tau + shifted(tau, outside, copies))
    shared = {"density": 1.0, "subspace": subspace}
    close(merge("doge", base, [expert] * copies, shared=shared), expected, 1e-9)


def test_directions_of_tasks_on_rows_of_their_own_go_by_strength_at_equal_length(merge):
    """Singular values beside each other are 1 throughout; the second task is the longer one, but not the stronger."""
    rng = np.random.default_rng(0)
    first, second = np.zeros((12, 12)), np.zeros((12, 12))
    left, right = (np.linalg.qr(rng.normal(size=(6, 6)))[0] for _ in range(2))
    first[:6, :6] = (left * [9.0, 1.0, 1.0, 1.0, 1.0, 1.0]) @ right
    second[6:, 6:] = 5.0 * (left * [6.0, 5.0, 3.0, 2.0, 1.0, 1.0]) @ right
    lam = factors([first, second])
    strengths = np.linalg.svd(np.concatenate([first * lam[0], second * lam[1]], 1))
    basis = strengths[0][:, :2]
    outside = np.eye(12) - basis @ basis.T
    merged = lam[0] * first + lam[1] * second
    free = [outside @ t for t in (first, second)]
    gram = np.array([[np.sum(a * b) for b in free] for a in free])
    wanted = [np.sum(t * (t - merged)) / sum(lam) for t in (first, second)]
    weights = np.linalg.solve(gram, wanted)
    delta = weights[0] * free[0] + weights[1] * free[1]
    base = np.zeros((12, 12))
    found = merge("doge", base, [first, second], shared={"density": 1.0})
    close(found, merged_by_hand(base, [first, second], delta), 1e-9)


def test_directions_that_are_equally_strong_stay_outside_together(merge):
    """The two strongest of four fit into a subspace of three, the two equal ones after them do not."""
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.normal(size=(6, 6)))[0] for _ in range(2))
    tau, base = (left * [4.0, 3.0, 2.0, 2.0, 1.0, 0.5]) @ right, np.zeros((6, 6))
    outside = np.eye(6) - led(tau, 2)
    expected = (ETA / np.linalg.norm(tau)) * (tau + shifted(tau, outside))
    close(merge("doge", base, [tau], shared={"density": 1.0, "subspace": 2.0}), expected, 1e-9)


@pytest.mark.parametrize("shape", [(40, 30), (30, 40)])
def test_numpy_and_torch_agree_on_the_shift_of_one_task(shape):
    base, (expert,) = draw(1, shape)
    base = np.float32(base)
    site = Site(Place("w", Kind.MLP_UP), shape)
    rules = registry.get("doge").build({}, [{}])
    shift = rules._shift(rules.view(site), site)
    arrays = [np.float32(expert) - base, base]
    ours = shift(np, *arrays)
    theirs = shift(torch, *[torch.from_numpy(a) for a in arrays]).numpy()
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5 * np.abs(ours).max())


def test_descent_from_where_the_tasks_cancel_stays_there(merge):
    """Its gradient is rounding there, of which Adam would make steps of full size."""
    base, (expert, *_) = draw(1, (8, 6))
    tau = expert - base
    merged = merge("doge", base, [expert, base - tau], preset="fusionbench")
    np.testing.assert_allclose(merged, base, atol=1e-14)
