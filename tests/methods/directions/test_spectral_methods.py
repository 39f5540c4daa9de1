"""TSV, RESM and Iso against their formulas in plain numpy, their identities, and what peers get wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from weightsmith.methods.parts import registry
from weightsmith.tensors.place import Place

FAMILY = ["tsv_m", "resm", "iso_c", "iso_cts", "opcm", "knots", "doge", "truncate"]
# Coefficients that are not left alone by a rotation of the rows or columns.
BASIS_BOUND = {"resm", "knots", "doge"}


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


def polar(a):
    u, _, v = np.linalg.svd(a, full_matrices=False)
    return u @ v


def top(a, k):
    u, s, v = np.linalg.svd(a, full_matrices=False)
    return u[:, :k], s[:k], v[:k]


def close(actual, expected, atol=1e-11):
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=atol)


# The whole family -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILY)
def test_zero_duplicate_and_rank_deficient_task_vectors_are_merged_finitely(name, merge):
    base = np.zeros((10, 8))
    some = low_rank(10, 8, 2, 1)
    for taus in (
        [some, some, some],
        [some, np.zeros_like(some), np.zeros_like(some)],
        [some, -some, np.zeros_like(some)],
        [some, some * 1e-9, some * 1e9],
        [low_rank(10, 8, 1, 2), low_rank(10, 8, 1, 3), some],
    ):
        for dtype in (np.float32, np.float64):
            experts = [(base + t).astype(dtype) for t in taus]
            merged = merge(name, base.astype(dtype), experts)
            assert np.isfinite(merged).all()


@pytest.mark.parametrize("name", [n for n in FAMILY if n not in BASIS_BOUND])
def test_rotating_rows_and_columns_rotates_the_merge(name, merge):
    base, experts = draw(3)
    left, right = rotation(12, 1), rotation(9, 2)
    turned = merge(name, left @ base @ right, [left @ e @ right for e in experts])
    close(turned, left @ merge(name, base, experts) @ right, 1e-10)


@pytest.mark.parametrize("name", [*FAMILY, "tsv_c"])
def test_permuting_rows_and_columns_permutes_the_merge(name, merge):
    base, experts = draw(registry.get(name).experts[1] or 3)
    rows, columns = (
        np.random.default_rng(3).permutation(12),
        np.random.default_rng(4).permutation(9),
    )
    shuffled = merge(name, base[rows][:, columns], [e[rows][:, columns] for e in experts])
    close(shuffled, merge(name, base, experts)[rows][:, columns], 1e-10)


@pytest.mark.parametrize("name", FAMILY)
def test_stacked_experts_are_merged_one_by_one(name, merge):
    if name in ("opcm", "doge", "knots"):
        shared = {"opcm": {}, "doge": {"density": 1.0}, "knots": {"density": 1.0}}[name]
    else:
        shared = {}
    base, experts = draw(3, (4, 12, 9))
    merged = merge(name, base, experts, shared=shared)
    for i in range(4):
        alone = merge(name, base[i], [e[i] for e in experts], shared=shared) - base[i]
        if name in ("opcm", "doge"):  # their norms are those of all experts together
            cosine = (alone * (merged[i] - base[i])).sum()
            assert cosine > 0.9 * np.linalg.norm(alone) * np.linalg.norm(merged[i] - base[i])
        else:
            close(merged[i] - base[i], alone)


@pytest.mark.parametrize("name", FAMILY)
def test_weights_stored_input_first_give_the_transpose(name, merge):
    base, experts = draw(3)
    expected = merge(name, base, experts).T
    close(merge(name, base.T, [e.T for e in experts], input_first=True), expected)
    close(
        merge(name, base.T, [e.T for e in experts], shared={"orientation": "input_first"}), expected
    )


@pytest.mark.parametrize("name", ["tsv_m", "iso_c", "iso_cts", "resm"])
def test_fused_projections_are_merged_whole_or_block_by_block(name, merge):
    base, experts = draw(2, (15, 5))
    whole = merge(name, base, experts, role="attention.qkv")
    close(whole, merge(name, base, experts))
    split = merge(name, base, experts, shared={"fused": "split"}, role="attention.qkv")
    for i in range(3):
        part = slice(5 * i, 5 * i + 5)
        close(split[part], merge(name, base[part], [e[part] for e in experts]))
    assert np.abs(split - whole).max() > 1e-3


@pytest.mark.parametrize("name", ["tsv_m", "iso_c", "iso_cts", "resm", "knots"])
def test_vectors_kernels_and_embeddings_follow_their_rules(name, merge):
    mean = np.mean
    for shape, facts, shared in (
        ((7,), {}, {}),
        ((4, 3, 2, 2), {}, {}),
        ((4, 3, 2), {}, {"stacks": "others"}),
        ((9, 4), {"role": "embedding"}, {"embeddings": "average"}),
    ):
        base, experts = draw(3, shape)
        taus = deltas(base, experts)
        close(merge(name, base, experts, shared=shared, **facts), base + mean(taus, axis=0))
        by_sum = {**shared, ("embeddings" if "role" in facts else "others"): "sum"}
        close(merge(name, base, experts, shared=by_sum, **facts), base + sum(taus))
        kept = {**shared, ("embeddings" if "role" in facts else "others"): "base"}
        np.testing.assert_array_equal(merge(name, base, experts, shared=kept, **facts), base)
    base, experts = draw(3, (4, 3, 2, 2))
    seen = merge(name, base, experts, shared={"kernels": "matrix"})
    flat = merge(name, base.reshape(4, 12), [e.reshape(4, 12) for e in experts])
    close(seen.reshape(4, 12), flat)


@pytest.mark.parametrize("name", ["tsv_m", "truncate"])
def test_a_sketch_of_a_falling_spectrum_gives_the_same_merge(name, merge):
    rng = np.random.default_rng(0)
    values = 0.6 ** np.arange(60)
    taus = [(rotation(80, i)[:, :60] * values) @ rotation(70, 10 + i)[:60] for i in range(2)]
    base = rng.normal(size=(80, 70))
    shared = {"rank_share": 0.15, "rank_tolerance": 1e-6}
    exact, sketched = (
        merge(name, base, [base + t for t in taus], shared={**shared, "svd": svd})
        for svd in ("exact", "randomized")
    )
    assert 0 < np.abs(exact - sketched).max() < 1e-5


@pytest.mark.parametrize("name", FAMILY)
def test_the_gram_path_gives_the_exact_paths_merge_in_float32(name, merge):
    base, experts = (
        np.float32(x) if not isinstance(x, list) else [np.float32(e) for e in x]
        for x in draw(3, (450, 40))
    )
    exact, gram, auto = (
        merge(name, base, experts, shared={"svd": svd}) for svd in ("exact", "gram", "auto")
    )
    np.testing.assert_allclose(gram, exact, rtol=0, atol=2e-6)
    np.testing.assert_array_equal(auto, gram)


# TSV ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(12, 9), (9, 12)])
@pytest.mark.parametrize("n", [2, 3, 4])
def test_tsv_m_is_its_formula(shape, n, merge):
    base, experts = draw(n, shape)
    k = 9 // n
    parts = [top(t, k) for t in deltas(base, experts)]
    left = np.concatenate([p[0] for p in parts], 1)
    values = np.concatenate([p[1] for p in parts])
    right = np.concatenate([p[2] for p in parts])
    merged = polar(left) @ np.diag(values) @ polar(right)
    close(merge("tsv_m", base, experts, shared={"lambda": 0.7}), base + 0.7 * merged, 1e-10)
    kept = np.linalg.svd(merge("tsv_m", base, experts) - base, compute_uv=False)[: n * k]
    close(kept, np.sort(values)[::-1])


def test_tsv_m_of_one_task_is_that_task(merge):
    base, experts = draw(1)
    close(merge("tsv_m", base, experts), experts[0])


def test_tsv_m_of_tasks_in_orthogonal_spaces_is_their_sum(merge):
    rows, columns = rotation(12, 0), rotation(9, 1)
    taus = [
        rows[:, s] @ np.diag([3.0, 2.0, 1.0]) @ columns[:, s].T
        for s in (slice(0, 3), slice(3, 6), slice(6, 9))
    ]
    base = np.random.default_rng(0).normal(size=(12, 9))
    close(merge("tsv_m", base, [base + t for t in taus]), base + sum(taus))


def test_tsv_m_of_equal_tasks_is_their_truncation(merge):
    """Peers let LAPACK fill the directions that U lacks, with an error as large as the result."""
    base, (expert, _) = draw(2)
    u, s, v = top(expert - base, 4)
    close(merge("tsv_m", base, [expert, expert]), base + (u * s) @ v)


def test_tsv_m_keeps_a_direction_of_each_task_in_tensors_smaller_than_their_number(merge):
    """The authors' code computes k = 0 there and drops the change altogether (preset reference)."""
    base, experts = draw(4, (9, 2))
    assert np.abs(merge("tsv_m", base, experts) - base).max() > 0.05
    np.testing.assert_array_equal(merge("tsv_m", base, experts, preset="reference"), base)


def test_tsv_m_lossless_keeps_every_direction(merge):
    base, experts = draw(3)
    parts = [top(t, 9) for t in deltas(base, experts)]
    left = np.concatenate([p[0] for p in parts], 1)
    right = np.concatenate([p[2] for p in parts])
    merged = polar(left) @ np.diag(np.concatenate([p[1] for p in parts])) @ polar(right)
    close(merge("tsv_m", base, experts, preset="lossless"), base + merged, 1e-10)


def test_tsv_m_weights_scale_the_task_vectors(merge):
    base, experts = draw(2)
    weights = [0.5, -2.0]
    scaled = [base + w * t for w, t in zip(weights, deltas(base, experts), strict=True)]
    per_expert = [{"weight": w} for w in weights]
    close(merge("tsv_m", base, experts, per_expert=per_expert), merge("tsv_m", base, scaled))


def test_tsv_c_keeps_a_tasks_share_of_directions(merge):
    base, (expert,) = draw(1)
    u, s, v = top(expert - base, 3)
    close(merge("tsv_c", base, [expert], shared={"tasks": 3}), base + (u * s) @ v)
    u, s, v = top(expert - base, 1)
    close(merge("tsv_c", base, [expert], shared={"tasks": 20}), base + (u * s) @ v)
    vector, (other,) = draw(1, (5,))
    close(merge("tsv_c", vector, [other]), other)


def test_resm_is_its_formula(merge):
    base, experts = draw(2, (30, 24))
    experts[1] = base + 0.1 * np.random.default_rng(5).standard_t(2, size=(30, 24))
    outliers, dense = [], []
    for tau in deltas(base, experts):
        size = np.abs(tau)
        outliers.append(size[size > size.mean() + 3 * size.std()].sum() / size.sum())
        dense.append(size.sum() ** 2 / (720 * (tau**2).sum()))
    omegas = np.array(outliers) / np.mean(outliers)
    ranks = [int(24 * d / sum(dense)) for d in dense]
    assert ranks[0] != ranks[1]
    parts = [top(t, k) for t, k in zip(deltas(base, experts), ranks, strict=True)]
    left = np.concatenate([p[0] for p in parts], 1)
    values = np.concatenate([p[1] * o for p, o in zip(parts, omegas, strict=True)])
    right = np.concatenate([p[2] for p in parts])
    close(merge("resm", base, experts), base + (polar(left) * values) @ polar(right), 1e-10)


def test_resm_of_equally_dense_tasks_without_outliers_is_tsv_m(merge):
    base, (expert, _) = draw(2)
    other = base + (expert - base)[::-1, ::-1]
    shared = {"outlier_sigma": 100.0}
    close(
        merge("resm", base, [expert, other], shared=shared), merge("tsv_m", base, [expert, other])
    )


# Iso ------------------------------------------------------------------------------------------------------------


def test_iso_c_is_its_formula(merge):
    base, experts = draw(3)
    u, s, v = np.linalg.svd(sum(deltas(base, experts)), full_matrices=False)
    merged = merge("iso_c", base, experts, shared={"lambda": 1.5})
    close(merged, base + 1.5 * s.mean() * u @ v)
    assert np.allclose(merged, merge("iso_c", base, experts, preset="fusionbench"))
    spectrum = np.linalg.svd(merge("iso_c", base, experts) - base, compute_uv=False)
    close(spectrum, np.full(9, s.mean()))
    assert spectrum.sum() == pytest.approx(s.sum())


def test_iso_c_leaves_a_multiple_of_an_orthogonal_matrix(merge):
    base = np.random.default_rng(0).normal(size=(6, 6))
    expert = base + 0.3 * rotation(6, 1)
    close(merge("iso_c", base, [expert]), expert)


@pytest.mark.parametrize("name", ["iso_c", "iso_cts"])
def test_iso_sends_no_strength_into_directions_that_no_task_changed(name, merge):
    """Peers give arbitrary null directions the same weight: 87.5 % of the energy for a rank-2 change of 16 x 16."""
    tau = low_rank(16, 16, 2, 0)
    base = np.zeros((16, 16))
    merged = merge(name, base, [tau])
    assert np.linalg.matrix_rank(merged, tol=1e-9) == 2
    u, s, v = top(tau, 2)
    close(merged, s.mean() * u @ v)
    full = merge(name, base, [tau], preset="reference")
    inside = u @ (u.T @ full)
    if np.linalg.norm(full) > 1.01 * np.linalg.norm(merged):
        assert (inside**2).sum() / (full**2).sum() < 0.5


@pytest.mark.parametrize(("f", "own"), [(0.8, 1), (0.5, 2), (0.2, 3), (0.0, 4)])
@pytest.mark.parametrize("turned", [False, True])
def test_iso_cts_is_its_formula(f, own, turned, merge):
    shape = (12, 15) if turned else (15, 12)
    base, experts = draw(3, shape)
    taus = deltas(base, experts)
    assert own == round((12 - int(f * 12)) / 3)
    u, s, v = top(sum(taus), 12 - 3 * own)
    parts = [top(t - u @ (u.T @ t), own) for t in taus]
    left = np.concatenate([*(p[0] for p in parts), u], 1)
    right = np.concatenate([*(p[2] for p in parts), v])
    mean = np.concatenate([*(p[1] for p in parts), s]).mean()
    merged = merge("iso_cts", base, experts, shared={"common_share": f})
    close(merged, base + mean * polar(left) @ polar(right), 1e-10)
    close(np.linalg.svd(merged - base, compute_uv=False), np.full(12, mean))


def test_iso_cts_with_common_directions_only_is_iso_c(merge):
    for n, shape, f in ((3, (12, 9), 1.0), (4, (9, 2), 0.0), (2, (5, 1), 0.8)):
        base, experts = draw(n, shape)
        close(
            merge("iso_cts", base, experts, shared={"common_share": f}),
            merge("iso_c", base, experts),
        )


def test_iso_cts_makes_no_direction_of_the_rounding_that_the_common_ones_leave(merge):
    """All tasks inside the common space: what is left of them is rounding, and must not come back at full strength."""
    rng = np.random.default_rng(0)
    left, right = rotation(20, 0)[:, :3], rotation(20, 1)[:3]
    taus = [left @ rng.normal(size=(3, 3)) @ right for _ in range(2)]
    base = np.zeros((20, 20))
    for dtype in (np.float32, np.float64):
        merged = merge("iso_cts", base.astype(dtype), [t.astype(dtype) for t in taus])
        assert np.linalg.matrix_rank(merged, tol=1e-4) == 3
        close(left @ (left.T @ merged), merged, 1e-5)


# Gradients of nothing: whole matrices in torch ------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILY)
def test_torch_and_numpy_agree(name):
    from weightsmith.graph.graph import source, walk
    from weightsmith.graph.site import Site

    base, experts = draw(2)
    spec = registry.get(name)
    graph = spec.build({}, [{}, {}]).combine(
        source(0), [source(1), source(2)], Site(Place("t"), (12, 9))
    )
    node = next(n for n in walk([graph]) if n.op == "whole")
    inputs = [*deltas(base, experts)[: len(node.inputs) - 1], base]
    ours = node.attributes[0](np, *inputs)
    theirs = node.attributes[0](torch, *(torch.from_numpy(x) for x in inputs))
    pairs = zip(ours, theirs, strict=True) if isinstance(ours, list) else [(ours, theirs)]
    for a, b in pairs:
        if name == "knots":  # parts of a basis, whose signs are free
            np.testing.assert_allclose(np.abs(b.numpy()), np.abs(a), rtol=0, atol=1e-11)
        else:
            np.testing.assert_allclose(b.numpy(), a, rtol=0, atol=1e-11)
