"""LoRA-LEGO: units of rank one, however they are written, clustered and reweighted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightsmith.deltas.changes import LowRankChange
from weightsmith.engine.planning.plan_making import make_plan
from weightsmith.errors import RecipeError, UsageError
from weightsmith.lora.lego import Lego, clustered, k_means
from weightsmith.recipes import Recipe

from .combined import combined, save
from .lora import adapter, assert_same, change, dense, regauged

VARIANTS = [
    Lego(),
    Lego(similarity="products"),
    Lego(norm="inf"),
    Lego(units="singular"),
    Lego(reweight_parameters=False),
]


def with_(variant, **more):
    return Lego(**{**{f: getattr(variant, f) for f in variant.__slots__}, **more})


def written_otherwise(one, rng):
    """The same units in another order, with other signs and other sizes of the halves."""
    order = rng.permutation(one.rank)
    factor = rng.choice([-1.0, 1.0], one.rank) * rng.uniform(0.1, 10.0, one.rank)
    return LowRankChange(one.left[:, order] * factor, one.right[order] / factor[:, None], one.scale)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_as_many_clusters_as_units_are_the_weighted_sum(variant):
    rng = np.random.default_rng(0)
    parts = [(1.0, change(rng, rank=2)), (-0.5, change(rng, rank=3, scale=2.0))]
    found = clustered(parts, with_(variant, rank=5, reweight_output=False))
    expected = sum(w * dense(c) for w, c in parts)
    assert found.rank == 5
    assert np.allclose(dense(found), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("copies", [1, 2, 5])
def test_copies_of_one_adapter_are_that_adapter(variant, copies):
    rng = np.random.default_rng(1)
    one = change(rng, rank=4, scale=0.5)
    found = clustered([(1.0, written_otherwise(one, rng)) for _ in range(copies)], variant)
    assert found.rank == 4
    assert np.allclose(dense(found), dense(one), rtol=0, atol=1e-11)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**16))
def test_order_signs_and_sizes_of_units_do_not_matter(variant, seed):
    rng = np.random.default_rng(seed)
    parts = [(1.0, change(rng, rank=4)), (0.7, change(rng, rank=3)), (-1.0, change(rng, rank=4))]
    plain = clustered(parts, with_(variant, rank=4))
    others = [(w, written_otherwise(c, rng)) for w, c in parts]
    again = clustered([others[i] for i in (2, 0, 1)], with_(variant, rank=4))
    assert np.allclose(dense(again), dense(plain), rtol=0, atol=1e-9)


def test_singular_units_do_not_depend_on_any_gauge():
    adapters = [adapter(2), adapter(3)]
    others = [regauged(a, i) for i, a in enumerate(adapters)]
    asked = {"parameters": {"units": "singular"}, "rank": 3}
    plain, _ = combined(adapters, "lego", **asked)
    again, _ = combined(others, "lego", **asked)
    assert_same(again, dense(plain), atol=1e-8)


def test_a_cluster_is_the_mean_of_its_units_with_their_mean_size():
    # Two pairs of units that belong together, b = a in size.
    a = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    b = np.array([[0.0, 1.0, 0.1], [1.0, 0.0, 0.0]])
    near = a + np.array([[0.0, 0.0, 0.3], [0.0, 0.0, 0.1]])
    parts = [(1.0, LowRankChange(b.T, a)), (1.0, LowRankChange(b.T, near))]
    for norm, order in (("l2", 2), ("inf", np.inf)):
        found = clustered(parts, Lego(rank=2, norm=norm))
        expected = np.zeros((3, 3))
        for j in range(2):
            units = []
            for rows in (a, near):
                size = np.sqrt(np.linalg.norm(b[j]) * np.linalg.norm(rows[j]))
                halves = [h[j] / np.linalg.norm(h[j]) * size for h in (b, rows)]
                units.append(np.concatenate(halves))
            mean = np.mean(units, axis=0)
            mean *= np.mean([np.linalg.norm(u, order) for u in units]) / np.linalg.norm(mean, order)
            expected += np.outer(mean[:3], mean[3:])
        assert np.allclose(dense(found), expected, atol=1e-12)


def test_the_output_keeps_its_variance_when_fewer_units_stand_for_more():
    rng = np.random.default_rng(4)
    parts = [(1.0, change(rng, rank=8))]
    plain = clustered(parts, Lego(rank=2, reweight_output=False))
    scaled = clustered(parts, Lego(rank=2))
    assert np.allclose(dense(scaled), np.sqrt(8 / 2) * dense(plain), atol=1e-12)


def test_opposite_units_cancel_no_more_than_their_products_do():
    # (a, b) and (-a, -b) are one unit: their mean is it, and not zero.
    rng = np.random.default_rng(5)
    one = change(rng, rank=1)
    turned = LowRankChange(-one.left, -one.right)
    for similarity in ("halves", "products"):
        found = clustered([(1.0, one), (1.0, turned)], Lego(rank=1, similarity=similarity))
        assert np.allclose(dense(found), dense(one), atol=1e-12)


def test_units_of_zero_take_no_part():
    rng = np.random.default_rng(6)
    one = change(rng, rank=2)
    padded = LowRankChange(np.pad(one.left, ((0, 0), (0, 2))), np.pad(one.right, ((0, 2), (0, 0))))
    found = clustered([(1.0, padded)], Lego(rank=4, reweight_output=False))
    assert found.rank == 2
    assert np.allclose(dense(found), dense(one), atol=1e-12)
    assert not dense(clustered([(0.0, one)])).any()


def test_clusters_are_found_without_randomness():
    rng = np.random.default_rng(7)
    centres = 10.0 * rng.normal(size=(4, 6))
    truth = rng.integers(0, 4, 60)
    points = centres[truth] + 0.1 * rng.normal(size=(60, 6))
    found = k_means(points @ points.T, 4)
    for j in range(4):
        assert len(set(found[truth == j])) == 1
    assert len(set(found)) == 4
    assert np.array_equal(k_means(points @ points.T, 100), np.arange(60))


def test_more_clusters_than_distinct_units_leave_some_empty():
    points = np.repeat(np.eye(2), 5, axis=0)
    assert len(set(k_means(points @ points.T, 4))) == 2


def test_one_adapter_is_pruned_to_fewer_units():
    one = adapter(8, rank=6)
    found, _ = combined([one], "lego", rank=2)
    assert {f.change.rank for f in found.factors.values()} == {2}
    expected = {k: clustered([(1.0, f.change)], Lego(rank=2)) for k, f in one.factors.items()}
    assert_same(found, {key: dense(change) for key, change in expected.items()}, atol=1e-10)


def test_what_clustering_leaves_is_cut_where_that_is_asked_for():
    adapters = [adapter(9), adapter(10)]
    whole, _ = combined(adapters, "lego", rank=3)
    cut, report = combined(adapters, "lego", rank=3, energy=0.6)
    for key, matrix in dense(whole).items():
        u, s, vt = np.linalg.svd(matrix)
        kept = int(np.argmax(np.cumsum(s**2) >= 0.6 * (s**2).sum())) + 1
        assert cut.factors[key].change.rank == kept < 3
        assert np.allclose(dense(cut)[key], (u[:, :kept] * s[:kept]) @ vt[:kept], atol=1e-10)
        assert report.lost[key] == pytest.approx(np.linalg.norm(s[kept:]) / np.linalg.norm(s))


def test_only_sums_have_units_to_cluster(tmp_path):
    save(adapter(11), tmp_path / "a")
    recipe = {
        "weightsmith": 1,
        "merge_method": "ties",
        "models": [{"model": str(tmp_path / "a")}],
        "adapter": {"reduce": "lego"},
    }
    with pytest.raises(RecipeError, match="lego clusters the units of a weighted sum"):
        make_plan(Recipe.load(recipe))


def test_requests_without_a_meaning_are_refused():
    with pytest.raises(UsageError, match="rank of 0"):
        clustered([(1.0, change(np.random.default_rng(0)))], Lego(rank=0))
    with pytest.raises(UsageError, match="at least one"):
        clustered([])
