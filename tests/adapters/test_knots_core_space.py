"""The joint basis of KnOTS and the core space, found from factors: exact, free of the gauge, the dense method's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightsmith.deltas.changes import LowRankChange
from weightsmith.lora.algebra import truncated
from weightsmith.lora.bounds import RankBound
from weightsmith.lora.low_rank_adapters import Factors, LowRankAdapter
from weightsmith.lora.spaces import CoreSpace, KnotsSpace

from .lora import (
    SHAPES,
    adapter,
    assert_same,
    change,
    dense,
    in_space,
    regauged,
    ties,
    weighted_sum,
)

SPACES = [
    KnotsSpace(),
    KnotsSpace(side="inputs"),
    KnotsSpace(basis="scaled"),
    KnotsSpace(side="inputs", basis="scaled"),
    CoreSpace(),
    CoreSpace(gauge="stored"),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
@settings(max_examples=10, deadline=None)
@given(
    st.integers(0, 2**16),
    st.lists(st.tuples(st.floats(-2, 2), st.integers(1, 5)), min_size=1, max_size=4),
)
def test_a_linear_merge_in_any_space_is_task_arithmetic(space, seed, parts):
    adapters = [adapter(seed + i, rank, scale=1.0 + i) for i, (_, rank) in enumerate(parts)]
    weights = [w for w, _ in parts]
    found, _ = in_space(space, adapters, weighted_sum(weights))
    expected = weighted_sum(weights)([dense(a) for a in adapters])
    assert_same(found, expected, atol=1e-11)


@pytest.mark.parametrize("space", SPACES, ids=str)
@pytest.mark.parametrize("input_first", [False, True])
def test_each_change_is_recovered_from_its_coordinates(space, input_first):
    rng = np.random.default_rng(0)
    changes = [change(rng, rank=r, scale=s) for r, s in ((2, 1.0), (4, 0.5), (1, -3.0))]
    entered = space.enter(changes, input_first=input_first)
    for one, coordinates in zip(changes, entered.coordinates, strict=True):
        found = entered.leave(coordinates, RankBound()).change
        assert np.allclose(dense(found), dense(one), rtol=0, atol=1e-12)


def test_coordinates_are_as_small_as_the_ranks():
    rng = np.random.default_rng(1)
    changes = [change(rng, (40, 30), 2), change(rng, (40, 30), 3)]
    assert [c.shape for c in KnotsSpace().enter(changes).coordinates] == [(5, 30)] * 2
    assert [c.shape for c in KnotsSpace(side="inputs").enter(changes).coordinates] == [(5, 40)] * 2
    assert [c.shape for c in CoreSpace().enter(changes).coordinates] == [(5, 5)] * 2


def test_knots_coefficients_are_those_of_the_dense_decomposition():
    rng = np.random.default_rng(2)
    changes = [change(rng, rank=2), change(rng, rank=3)]
    u, s, vt = np.linalg.svd(np.concatenate([dense(c) for c in changes], 1), full_matrices=False)
    entered, scaled = KnotsSpace().enter(changes), KnotsSpace(basis="scaled").enter(changes)
    for i, one in enumerate(changes):
        block = vt[:5, i * 10 : (i + 1) * 10]
        # The sign of each direction is arbitrary.
        assert np.allclose(abs(entered.coordinates[i]), abs(s[:5, None] * block), atol=1e-12)
        assert np.allclose(abs(scaled.coordinates[i]), abs(block), atol=1e-12)
        assert np.allclose(abs(u[:, :5].T @ dense(one)), abs(entered.coordinates[i]), atol=1e-12)


@pytest.mark.parametrize("space", SPACES[:5], ids=str)
def test_results_do_not_depend_on_the_gauge(space):
    adapters = [adapter(3), adapter(4, rank=2)]
    others = [regauged(a, i) for i, a in enumerate(adapters)]
    plain, _ = in_space(space, adapters, ties(0.4, [1.0, 1.0]))
    again, _ = in_space(space, others, ties(0.4, [1.0, 1.0]))
    assert_same(again, plain, atol=1e-8)


def test_the_stored_gauge_is_what_the_core_space_of_the_authors_depends_on():
    adapters = [adapter(3), adapter(4, rank=2)]
    others = [regauged(a, i) for i, a in enumerate(adapters)]
    rule, space = ties(0.4, [1.0, 1.0]), CoreSpace(gauge="stored")
    plain, _ = in_space(space, adapters, rule)
    again, _ = in_space(space, others, rule)
    assert any(not np.allclose(plain[k], again[k], atol=1e-3) for k in SHAPES)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_the_order_of_adapters_does_not_matter(space):
    adapters = [adapter(5), adapter(6), adapter(7)]
    plain, _ = in_space(space, adapters, ties(0.4, [1.0, 2.0, 0.5]))
    turned, _ = in_space(space, [adapters[i] for i in (2, 0, 1)], ties(0.4, [0.5, 1.0, 2.0]))
    assert_same(turned, plain, atol=1e-9)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_one_adapter_alone_is_itself(space):
    one = adapter(8, scale=2.0)
    found, lost = in_space(space, [one], ties(1.0, [1.0]))
    assert_same(found, dense(one), atol=1e-11)
    assert set(lost.values()) == {0.0}


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_the_rank_can_be_cut_on_the_way_back(space):
    adapters = [adapter(9), adapter(10)]
    whole, _ = in_space(space, adapters, ties(0.5, [1.0, 1.0]))
    cut, lost = in_space(space, adapters, ties(0.5, [1.0, 1.0]), RankBound(rank=2))
    assert set(lost) == set(SHAPES)
    for key, share in lost.items():
        u, s, vt = np.linalg.svd(whole[key])
        assert np.allclose(cut[key], (u[:, :2] * s[:2]) @ vt[:2], atol=1e-10)
        assert share == pytest.approx(np.linalg.norm(s[2:]) / np.linalg.norm(s), abs=1e-9)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_adapters_without_a_part_in_a_tensor_have_zeros_there(space):
    a, b = adapter(11), adapter(12, shapes={"model.layers.0.mlp.down_proj.weight": (9, 16)})
    found, _ = in_space(space, [a, b], weighted_sum([0.5, 2.0]))
    expected = {k: 0.5 * m for k, m in dense(a).items()}
    expected["model.layers.0.mlp.down_proj.weight"] += (
        2.0 * dense(b)["model.layers.0.mlp.down_proj.weight"]
    )
    assert_same(found, expected, atol=1e-11)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_a_direction_that_an_adapter_lacks_has_no_vote(space):
    # Two changes of unlike rows and columns: rounding must not be elected over zeros.
    one = LowRankChange(np.eye(6)[:, :2], np.eye(2, 8))
    two = LowRankChange(np.eye(6)[:, 3:4], np.eye(8)[5:6], 2.0)
    first, second = space.enter([one, two]).coordinates
    assert not ((first != 0.0) & (second != 0.0)).any()


@pytest.mark.parametrize("side", ["outputs", "inputs"])
def test_what_storage_rounds_does_not_grow_into_directions(side):
    # One change twice, once through float32: divided by its size, the difference would count like the change.
    space = KnotsSpace(side=side, basis="scaled")
    one = change(np.random.default_rng(0), rank=2)
    stored = LowRankChange(
        *(f.astype(np.float32).astype(np.float64) for f in (one.left, one.right))
    )
    rule = ties(0.5, [1.0, 1.0])
    entered, twice = space.enter([one, stored]), space.enter([one, one])
    assert entered.coordinates[0].shape[0] == 2
    merged = [
        e.leave(rule([{"w": c} for c in e.coordinates])["w"], RankBound()) for e in (entered, twice)
    ]
    assert np.allclose(dense(merged[0].change), dense(merged[1].change), atol=1e-5)


@pytest.mark.parametrize("gauge", ["stored", "balanced"])
def test_core_matrices_lie_between_the_singular_bases_of_all_factors(gauge):
    rng = np.random.default_rng(3)
    changes = [change(rng, rank=2, scale=2.0), change(rng, rank=3)]
    factors = changes if gauge == "stored" else [truncated(c)[0] for c in changes]
    u = np.linalg.svd(np.concatenate([c.left for c in factors], 1), full_matrices=False)[0]
    v = np.linalg.svd(np.concatenate([c.right for c in factors], 0), full_matrices=False)[2].T
    entered = CoreSpace(gauge=gauge).enter(changes)
    for one, core in zip(changes, entered.coordinates, strict=True):
        assert np.allclose(abs(core), abs(u.T @ dense(one) @ v), atol=1e-11)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_changes_of_zero_stay_zero_and_finite(space):
    zero = Factors("w", LowRankChange(np.zeros((6, 2)), np.ones((2, 5))), (6, 5))
    found, lost = in_space(space, [LowRankAdapter({"w": zero})] * 2, weighted_sum([1.0, 1.0]))
    assert found["w"].shape == (6, 5)
    assert not found["w"].any()
    assert lost == {"w": 0.0}
    real = LowRankAdapter({"w": Factors("w", change(np.random.default_rng(0), (6, 5), 2), (6, 5))})
    found, _ = in_space(space, [LowRankAdapter({"w": zero}), real], weighted_sum([1.0, 0.5]))
    assert np.allclose(found["w"], 0.5 * dense(real)["w"], atol=1e-12)


def test_inputs_first_weights_are_seen_as_their_transposes():
    rng = np.random.default_rng(13)
    changes = [change(rng, rank=2), change(rng, rank=3)]
    turned = [LowRankChange(c.right.T, c.left.T, c.scale) for c in changes]
    for side in ("outputs", "inputs"):
        plain = KnotsSpace(side=side).enter(changes)
        other = KnotsSpace(side=side).enter(turned, input_first=True)
        for x, y in zip(plain.coordinates, other.coordinates, strict=True):
            assert np.allclose(abs(x), abs(y), atol=1e-11)


@pytest.mark.parametrize("side", ["outputs", "inputs"])
@pytest.mark.parametrize("basis", ["orthonormal", "scaled"])
def test_ties_is_what_the_dense_method_gives(side, basis):
    torch = pytest.importorskip("torch")
    from weightsmith.engine.api import merge_state_dicts

    # Full rank along the side with the basis, so that both count the same number of coefficients.
    shapes = {f"model.layers.{i}.mlp.up_proj.weight": (6, 6) for i in range(2)}
    adapters = [adapter(i, rank=3, shapes=shapes) for i in (14, 15)]
    states = [{k: torch.from_numpy(m) for k, m in dense(a).items()} for a in adapters]
    expected = merge_state_dicts(
        "knots",
        states,
        base={k: torch.zeros_like(t) for k, t in states[0].items()},
        parameters={"density": 0.5, "axis": side, "basis": basis},
    )
    found, _ = in_space(KnotsSpace(side, basis), adapters, ties(0.5, [1.0, 1.0]))
    assert_same(found, {k: t.numpy() for k, t in expected.items()}, atol=1e-9)
