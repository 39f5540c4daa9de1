"""KnOTS against its formula in plain numpy, and what its share of coefficients counts."""

from __future__ import annotations

import numpy as np
import pytest


def draw(n, shape=(12, 9), seed=0):
    base, *rest = np.random.default_rng(seed).normal(size=(n + 1, *shape))
    return base, [base + 0.1 * r for r in rest]


def deltas(base, experts):
    return [e - base for e in experts]


def low_rank(m, n, r, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(m, r)) @ rng.normal(size=(r, n))


def rotation(n, seed):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))[0]


def close(actual, expected, atol=1e-11):
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=atol)


def knots_by_hand(base, experts, density, scale=1.0, *, scaled=False):
    """TIES of T_i = U^T tau_i over one tensor, mean over the agreeing."""
    taus = deltas(base, experts)
    u, s, v = np.linalg.svd(np.concatenate(taus, 1), full_matrices=False)
    real = s > 1e-9 * s[0]
    u, s, v = u[:, real], s[real], v[real]
    n = base.shape[1]
    coefficients = v if scaled else s[:, None] * v
    parts = [coefficients[:, i * n : (i + 1) * n] for i in range(len(taus))]
    kept = int(density * len(s) * n)
    trimmed = []
    for part in parts:
        threshold = np.sort(np.abs(part).ravel())[::-1][kept - 1]
        trimmed.append(np.where(np.abs(part) >= threshold, part, 0.0))
    elected = np.sign(sum(trimmed))
    agree = [np.sign(t) == elected for t in trimmed]
    total = sum(np.where(a & (elected != 0), t, 0.0) for a, t in zip(agree, trimmed, strict=True))
    count = sum((a & (elected != 0)).astype(float) for a in agree)
    merged = total / np.where(count == 0, 1.0, count)
    return base + scale * (u * s if scaled else u) @ merged


@pytest.mark.parametrize("shape", [(12, 9), (9, 12), (20, 4)])
@pytest.mark.parametrize("density", [0.2, 1.0])
def test_knots_is_its_formula(shape, density, merge):
    base, experts = draw(3, shape)
    shared = {"density": density, "lambda": 0.6}
    close(
        merge("knots", base, experts, shared=shared),
        knots_by_hand(base, experts, density, 0.6),
        1e-9,
    )
    close(
        merge("knots", base, experts, shared={"density": density}, preset="scaled_basis"),
        knots_by_hand(base, experts, density, scaled=True),
        1e-9,
    )


@pytest.mark.parametrize("density", [0.05, 0.2, 1.0])
@pytest.mark.parametrize("axis", ["outputs", "inputs"])
def test_knots_of_low_ranks_counts_the_coefficients_that_there_are(density, axis, merge):
    """Three tasks of rank 2 have 6 rows of coefficients in a matrix of 40: the share is one of 6 rows."""
    base, taus = np.zeros((40, 48)), [low_rank(40, 48, 2, seed) for seed in (1, 2, 3)]
    shared = {"density": density, "axis": axis}
    found = merge("knots", base, taus, shared=shared)
    if axis == "outputs":
        close(found, knots_by_hand(base, taus, density), 1e-9)
    else:
        close(found, knots_by_hand(base.T, [t.T for t in taus], density).T, 1e-9)


def test_knots_counts_coefficients_over_the_model(merge_model):
    """12 rows of 9 and 2 of 30: half of 168 are the large ones of the second tensor, and some of the first."""
    full, thin = draw(2, (12, 9)), (np.zeros((20, 30)), [low_rank(20, 30, 1, s) for s in (1, 2)])
    tensors = {"full": (*full, {}), "thin": (*thin, {})}
    found = merge_model("knots", tensors, shared={"density": 0.5})
    parts = {}
    for name, (base, experts, _) in tensors.items():
        taus = deltas(base, experts)
        u, s, v = np.linalg.svd(np.concatenate(taus, 1), full_matrices=False)
        rank = int((s > 1e-9).sum())
        images = s[:rank, None] * v[:rank]
        parts[name] = u[:, :rank], np.split(images, 2, axis=1)
    assert sum(images[0].size for _, images in parts.values()) == 12 * 9 + 2 * 30
    limits = [
        np.sort(np.concatenate([np.abs(images[i]).ravel() for _, images in parts.values()]))[-84]
        for i in (0, 1)
    ]
    for name, (left, images) in parts.items():
        kept = [
            np.where(np.abs(t) >= limit, t, 0.0) for t, limit in zip(images, limits, strict=True)
        ]
        agree = [np.sign(t) == np.sign(sum(kept)) for t in kept]
        merged = sum(np.where(a, t, 0.0) for a, t in zip(agree, kept, strict=True))
        voters = sum(a & (t != 0) for a, t in zip(agree, kept, strict=True))
        close(found[name], tensors[name][0] + left @ (merged / np.maximum(voters, 1)), 1e-9)


def test_knots_gives_coefficients_that_cancel_the_models_more_frequent_sign_if_asked(merge):
    """Opposite tasks cancel in two directions, and the third elects a sign, which is then the most frequent."""
    base = np.zeros((4, 3))
    taus = [np.diag([3.0, 2.0, 1.0, 0.0])[:, :3] * s for s in (1.0, -1.0)]
    shared = {"density": 1.0}
    np.testing.assert_array_equal(merge("knots", base, taus, shared=shared), base)
    taus[0][2, 2] = 5.0
    found = merge("knots", base, taus, shared={**shared, "zero_sum": "majority"})
    assert np.abs(np.diag(found)) == pytest.approx([3.0, 2.0, 5.0])


@pytest.mark.parametrize("axis", ["outputs", "inputs"])
def test_knots_along_inputs_is_knots_of_the_transposes(axis, merge):
    base, experts = draw(3, (10, 7))
    other = {"outputs": "inputs", "inputs": "outputs"}[axis]
    close(
        merge("knots", base, experts, shared={"axis": axis}),
        merge("knots", base.T, [e.T for e in experts], shared={"axis": other}).T,
    )


def test_knots_with_a_linear_merger_is_the_mean_of_the_task_vectors(merge):
    base, experts = draw(3)
    weights = [{"weight": w} for w in (1.0, 2.0, 1.0)]
    expected = base + np.average(deltas(base, experts), axis=0, weights=[1, 2, 1])
    shared = {"merger": "linear"}
    close(merge("knots", base, experts, shared=shared, per_expert=weights), expected)
    kept = {"merger": "dare_linear", "density": 1.0}
    close(merge("knots", base, experts, shared=kept, per_expert=weights), expected)


def test_knots_of_one_task_is_that_task(merge):
    base, experts = draw(1)
    close(merge("knots", base, experts, shared={"density": 1.0}), experts[0])


def test_knots_lets_no_rounding_vote_in_directions_that_a_task_lacks(merge):
    """Tasks in orthogonal spaces meet nowhere, so nothing is averaged and their sum is left."""
    rows, columns = rotation(12, 0), rotation(9, 1)
    taus = [
        rows[:, s] @ np.diag(values) @ columns[:, s].T
        for s, values in ((slice(0, 3), [3.0, 2.0, 1.0]), (slice(3, 6), [4.0, 2.5, 1.5]))
    ]
    base = np.zeros((12, 9))
    close(merge("knots", base, taus, shared={"density": 1.0}), base + sum(taus), 1e-9)


def test_knots_drops_coefficients_at_random_and_makes_up_for_them(merge):
    base, experts = draw(2, (40, 30))
    shared = {"merger": "dare_linear", "density": 0.5, "normalize": "none"}
    runs = [merge("knots", base, experts, shared=shared, seed=s) - base for s in range(60)]
    assert np.abs(runs[0] - runs[1]).max() > 1e-3
    expected = sum(deltas(base, experts))
    error = np.linalg.norm(np.mean(runs, axis=0) - expected) / np.linalg.norm(expected)
    assert error < 2.0 / np.sqrt(60)


def test_knots_trims_over_the_whole_model_unless_told_otherwise(merge_model, merge):
    small, large = draw(2, (10, 8), 0), draw(2, (10, 8), 1)
    large = (large[0], [large[0] + 100 * (e - large[0]) for e in large[1]])
    tensors = {"small": (*small, {}), "large": (*large, {})}
    model = merge_model("knots", tensors, shared={"density": 0.4})
    np.testing.assert_array_equal(model["small"], small[0])
    apart = merge_model("knots", tensors, shared={"density": 0.4, "scope": "tensor"})
    for name, (base, experts) in (("small", small), ("large", large)):
        close(apart[name], merge("knots", base, experts, shared={"density": 0.4}))


@pytest.mark.parametrize("density", [0.3, 0.6])
@pytest.mark.parametrize("axis", ["outputs", "inputs"])
def test_knots_counts_coefficients_that_no_task_has(density, axis, merge):
    """Inputs that no task touches have a coefficient in every direction, which is 0 and counts like in TIES."""
    base, experts = draw(2, (8, 10))
    for expert in experts:
        expert[:, 4:] = base[:, 4:]
    found = merge("knots", base, experts, shared={"density": density, "axis": axis})
    by_hand = knots_by_hand(base, experts, density)
    if axis == "inputs":
        by_hand = knots_by_hand(base.T, [e.T for e in experts], density).T
    close(found, by_hand, 1e-9)


def test_knots_counts_what_the_authors_count_over_the_model(merge_model):
    """6 directions (two tasks changed three inputs) of 10 coefficients and 6 of 6: half of 96 are kept."""
    wide, small = draw(2, (8, 10)), draw(2, (6, 6), 1)
    for expert in wide[1]:
        expert[:, 3:] = wide[0][:, 3:]
    found = merge_model(
        "knots", {"wide": (*wide, {}), "small": (*small, {})}, shared={"density": 0.5}
    )
    parts = {}
    for name, (base, experts) in (("wide", wide), ("small", small)):
        joined = np.concatenate(deltas(base, experts), 1)
        u, s, v = np.linalg.svd(joined, full_matrices=False)
        rank = int((s > 1e-9).sum())
        parts[name] = u[:, :rank], np.split(s[:rank, None] * v[:rank], 2, axis=1)
    total = sum(images[0].size for _, images in parts.values())
    assert total == 6 * 10 + 6 * 6
    for name, (left, images) in parts.items():
        kept = []
        for i, image in enumerate(images):
            sizes = np.concatenate([np.abs(other[i]).ravel() for _, other in parts.values()])
            kept.append(np.where(np.abs(image) >= np.sort(sizes)[-total // 2], image, 0.0))
        elected = np.sign(sum(kept))
        agree = [(np.sign(t) == elected) & (t != 0) for t in kept]
        merged = sum(np.where(a, t, 0.0) for a, t in zip(agree, kept, strict=True))
        base = wide[0] if name == "wide" else small[0]
        close(found[name], base + left @ (merged / np.maximum(sum(agree), 1)), 1e-9)
