"""Adapters combined by what they change: every method against dense arithmetic, and what other programs get wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from weightsmith.deltas.changes import LowRankChange
from weightsmith.engine.adapter_api import combine_adapters
from weightsmith.errors import CompatibilityError, NonFiniteError, RecipeError, UsageError
from weightsmith.lora.low_rank_adapters import Factors, LowRankAdapter

from .combined import combined, read, save
from .lora import SHAPES, adapter, assert_same, change, cut, dense, regauged, ties

Q = "model.layers.0.self_attn.q_proj.weight"
HEAD, BIAS = "lm_head.weight", "model.layers.0.self_attn.q_proj.bias"


@pytest.fixture
def original():
    return np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


@pytest.fixture
def base(tmp_path, original):
    """A model of which the tests know one tensor."""
    whole = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    save_file({HEAD: original, **whole}, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def summed(adapters, weights):
    return {
        key: sum(
            w * dense(a)[key] for w, a in zip(weights, adapters, strict=True) if key in a.factors
        )
        for key in SHAPES
    }


def rounding(adapters, weights):
    """What float64 may make of a sum of products with 28 rows and columns at the most.

    Each of its directions is off, or left out as rounding, by that many units of what was added.
    """
    lengths, directions = 0.0, 0
    for weight, own in zip(weights, adapters, strict=True):
        changes = [factors.change for factors in own.factors.values()]
        lengths += abs(weight) * max(c.scale * length(c) for c in changes)
        directions += changes[0].rank
    return 28 * float(np.finfo(np.float64).eps) * np.sqrt(directions) * lengths


def length(product):
    return np.linalg.norm(product.left) * np.linalg.norm(product.right)


# Products of subnormal numbers have fewer bits than rounding allows for.
WEIGHTS = st.floats(-2.0, 2.0).filter(lambda weight: weight == 0 or abs(weight) > 1e-200)
PARTS = st.lists(st.tuples(WEIGHTS, st.integers(1, 4), st.floats(0.1, 8.0)), min_size=1, max_size=3)


@pytest.mark.parametrize("method", ["cat", "task_arithmetic"])
@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**16), PARTS)
def test_linear_methods_sum_true_changes_of_any_ranks_scales_and_signs(method, seed, parts):
    adapters = [adapter(seed + i, rank, scale) for i, (_, rank, scale) in enumerate(parts)]
    weights = [w for w, _, _ in parts]
    found, _ = combined(adapters, method, weights)
    assert_same(found, summed(adapters, weights), atol=rounding(adapters, weights))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**16), PARTS)
@example(0, [(0.0, 2, 1.0), (1.0, 1, 1.0), (1.0, 1, 1.0)])
def test_svd_is_as_near_to_the_sum_as_the_largest_rank_can_be(seed, parts):
    """Where singular values are nearly equal there are several such matrices, and each is right."""
    adapters = [adapter(seed + i, rank, scale) for i, (_, rank, scale) in enumerate(parts)]
    weights = [w for w, _, _ in parts]
    found, _ = combined(adapters, "svd", weights)
    rank = max(rank for _, rank, _ in parts)
    for key, whole in summed(adapters, weights).items():
        left_over = np.linalg.norm(np.linalg.svd(whole, compute_uv=False)[rank:])
        off = np.linalg.norm(dense(found)[key] - whole)
        assert abs(off - left_over) <= rounding(adapters, weights)
        assert found.factors[key].change.rank <= rank


def test_the_rank_of_svd_does_not_jump_where_a_weight_vanishes():
    adapters = [adapter(1, rank=2), adapter(2, rank=1), adapter(3, rank=1)]
    without, _ = combined(adapters, "svd", [0.0, 1.0, 1.0])
    barely, _ = combined(adapters, "svd", [1e-13, 1.0, 1.0])
    assert_same(without, dense(barely), atol=1e-10)


def test_a_sum_has_no_more_directions_than_the_matrix_and_no_zeros():
    adapters = [adapter(i, rank=6) for i in range(3)]
    found, report = combined(adapters, "linear")
    assert {f.change.rank for f in found.factors.values()} == {9, 10}
    assert report.lost == {}
    assert_same(found, summed(adapters, [1 / 3] * 3))
    found, _ = combined(adapters[:2], "cat", [0.0, 2.0])
    assert {f.change.rank for f in found.factors.values()} == {6}
    assert_same(found, summed(adapters[1:2], [2.0]))
    found, _ = combined(adapters[:2], "cat", [0.0, 0.0])
    assert {f.change.rank for f in found.factors.values()} == {1}


def test_cat_keeps_the_factors_themselves():
    a, b = adapter(1, scale=2.0), adapter(2, rank=5)
    found, report = combined([a, b], "cat", [1.0, -0.5])
    change_ = found.factors[Q].change
    assert change_.rank == 8
    assert change_.scale == 1.0
    assert report.lost == {}
    assert np.array_equal(change_.right[:3], a.factors[Q].change.right)
    assert np.array_equal(change_.left[:, 3:], -0.5 * b.factors[Q].change.left)


@pytest.mark.parametrize("method", ["cat", "linear", "task_arithmetic", "svd", "lego"])
def test_one_adapter_with_weight_one_is_itself(method):
    # PEFT scales twice, or by sqrt(r) with rsLoRA: the change of weight 1 must be the change.
    for scale in (1.0, 16 / np.sqrt(4), 0.25):
        one = adapter(3, rank=4, scale=scale)
        found, _ = combined([one], method, [1.0])
        assert_same(found, dense(one))


def test_no_method_depends_on_how_products_are_written():
    a, b = adapter(4), adapter(5)
    for method in ("linear", "svd", "task_arithmetic"):
        plain, _ = combined([a, b], method, [0.7, -0.4], rank=2)
        other, _ = combined([regauged(a), regauged(b, 1)], method, [0.7, -0.4], rank=2)
        assert_same(other, dense(plain), atol=1e-9)


def test_the_mean_of_products_is_not_the_product_of_means():
    # Factor by factor, as PEFT's `linear` and kohya's merge do it, is off by more than the result.
    a, b = adapter(6), adapter(7)
    found, _ = combined([a, b], "linear")
    c, d = a.factors[Q].change, b.factors[Q].change
    by_factor = (c.left + d.left) / 2 @ ((c.right + d.right) / 2)
    true = (c.left @ c.right + d.left @ d.right) / 2
    assert np.allclose(dense(found)[Q], true, atol=1e-12)
    assert np.linalg.norm(by_factor - true) > 0.5 * np.linalg.norm(true)


def test_two_adapters_that_cancel_give_zeros_that_can_be_written():
    one = adapter(8)
    found, report = combined([one, one], "svd", [1.0, -1.0])
    assert report.lost == {}
    for factors in found.factors.values():
        assert factors.change.rank == 1
        assert not dense(factors.change).any()


def test_a_tensor_that_only_one_adapter_changes_keeps_its_weight_and_is_reported():
    a = adapter(9)
    b = adapter(10, shapes={Q: SHAPES[Q]})
    found, report = combined([a, b], "linear", [0.5, 0.5], labels=["chat", "code"])
    assert_same(found, summed([a, b], [0.5, 0.5]))
    (note,) = (f for f in report.findings if f.code == "absent-change")
    assert note.subject == "code"
    assert "and 1 more" in note.message
    assert found.factors["model.layers.1.self_attn.q_proj.weight"].change.rank == 3


def test_linear_divides_weights_by_their_sum_as_recipes_do():
    adapters = [adapter(11), adapter(12)]
    found, _ = combined(adapters, "linear", [3.0, 1.0])
    assert_same(found, summed(adapters, [0.75, 0.25]))
    with pytest.raises(RecipeError, match="sum to 0"):
        combined(adapters, "linear", [1.0, -1.0])


def test_weights_default_to_the_mean_and_to_the_whole_for_task_arithmetic():
    adapters = [adapter(11), adapter(12)]
    assert_same(combined(adapters)[0], summed(adapters, [0.5, 0.5]))
    assert_same(combined(adapters, "task_arithmetic")[0], summed(adapters, [1.0, 1.0]))


def test_truncation_reports_what_it_lost_of_each_tensor():
    adapters = [adapter(13), adapter(14)]
    found, report = combined(adapters, "task_arithmetic", [1.0, 1.0], energy=0.8)
    expected = summed(adapters, [1.0, 1.0])
    assert set(report.lost) == set(SHAPES)
    for key, lost in report.lost.items():
        difference = np.linalg.norm(dense(found)[key] - expected[key])
        assert lost == pytest.approx(difference / np.linalg.norm(expected[key]), rel=1e-9)
        assert 0.0 < lost <= np.sqrt(0.2)


def test_biases_are_summed_with_the_weights():
    other = BIAS.replace("layers.0", "layers.1")
    a = adapter(15, added={BIAS: np.arange(12, dtype=np.float32)})
    b = adapter(16, added={BIAS: np.ones(12, np.float32), other: np.ones(12, np.float32)})
    found, _ = combined([a, b], "cat", [2.0, -1.0])
    assert np.array_equal(found.added[BIAS], 2.0 * np.arange(12) - 1.0)
    assert np.array_equal(found.added[other], -np.ones(12))


def test_a_replaced_tensor_of_one_adapter_stays_and_needs_no_base():
    head = np.ones((4, 3), np.float32)
    found, _ = combined([adapter(17, replaced={HEAD: head}), adapter(18)], "cat", [1.0, 0.3])
    assert np.array_equal(found.replaced[HEAD], head)


def test_the_same_replaced_tensor_stays_where_weights_sum_to_one():
    head = np.full((4, 3), 0.1, np.float32)
    adapters = [adapter(i, replaced={HEAD: head.copy()}) for i in (19, 20)]
    found, _ = combined(adapters, "linear", [0.3, 0.7])
    assert np.array_equal(found.replaced[HEAD], head)


def test_replaced_tensors_are_combined_as_changes_of_the_base(base, original):
    heads = [original + d for d in (np.float32(1.0), np.float32(-3.0))]
    adapters = [adapter(i, replaced={HEAD: h}) for i, h in enumerate(heads)]
    found, _ = combined(adapters, "cat", [0.5, 0.25], base=base)
    assert np.allclose(found.replaced[HEAD], original + 0.5 * 1.0 + 0.25 * -3.0, atol=1e-6)
    # With weight 0 an adapter replaces nothing.
    found, _ = combined(adapters, "linear", [1.0, 0.0], base=base)
    assert np.array_equal(found.replaced[HEAD], heads[0])
    found, _ = combined(adapters, "cat", [0.0, 0.0], base=base)
    assert HEAD not in found.replaced


def test_what_one_adapter_replaces_and_another_changes_is_one_tensor(base, original):
    low = Factors(HEAD, change(np.random.default_rng(0), (4, 3), 2), (4, 3))
    one = LowRankAdapter({HEAD: low})
    other = adapter(21, replaced={HEAD: original + 1.0})
    found, _ = combined([one, other], "cat", [2.0, 0.5], base=base)
    assert HEAD not in found.factors
    assert np.allclose(found.replaced[HEAD], original + 2.0 * dense(low.change) + 0.5, atol=1e-6)


def test_replaced_tensors_that_differ_need_the_base():
    adapters = [adapter(i, replaced={HEAD: np.full((4, 3), float(i), np.float32)}) for i in (1, 2)]
    for asked in (
        (adapters, "linear", [0.5, 0.5]),
        (adapters[:1], "cat", [0.5]),
        (adapters, "ties"),
    ):
        with pytest.raises(CompatibilityError, match=r"lm_head\.weight.*name the base.*--base"):
            combined(*asked)


def test_a_base_of_another_model_is_refused(base):
    wide = adapter(22, replaced={HEAD: np.ones((9, 3), np.float32)})
    with pytest.raises(CompatibilityError, match=r"of shape \[4, 3\].*resized"):
        combined([wide], "cat", [0.5], base=base)
    # What needs no base is not asked whether it fits: a table of a larger vocabulary stays as it is.
    found, _ = combined([wide], "cat", [1.0])
    assert found.replaced[HEAD].shape == (9, 3)


def test_adapters_of_other_bases_are_refused():
    a = adapter(23)
    b = adapter(24, shapes={Q: (10, 12)})
    with pytest.raises(CompatibilityError, match=r"12 x 10 in '.*chat' and 10 x 12 in '.*code'"):
        combined([a, b], labels=["chat", "code"])
    short = adapter(25, added={BIAS: np.ones(11, np.float32)})
    with pytest.raises(CompatibilityError, match=r"\[12\] by .*\[11\] by "):
        combined([adapter(25, added={BIAS: np.ones(12, np.float32)}), short])


def fused(seed):
    rng = np.random.default_rng(seed)
    name = "model.layers.0.mlp.experts.down_proj"
    parts = [Factors(name, change(rng), (2, 12, 10), part=e) for e in (0, 1)]
    return LowRankAdapter({part.key: part for part in parts})


@pytest.mark.parametrize("method", ["svd", "knots"])
def test_experts_of_a_fused_tensor_are_combined_one_by_one(method):
    one = fused(26)
    parameters = {"density": 1.0} if method == "knots" else {}
    found, _ = combined([one, one], method, [0.5, 0.5], parameters=parameters)
    assert sorted(found.factors) == sorted(one.factors)
    for key, part in one.factors.items():
        merged = found.factors[key]
        assert merged.part == part.part
        assert merged.change.rank == 3
        # The file has float32.
        assert np.allclose(dense(merged.change), dense(part.change), atol=1e-5)


def test_different_base_names_are_a_warning():
    adapters = [adapter(27, base_reference="org/a"), adapter(28, base_reference="org/b")]
    report = combined(adapters, labels=["x", "y"])[1]
    (warning,) = (f for f in report.findings if f.code == "other-base")
    assert "org/b" in warning.message


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weights": [1.0]}, "1 value of 'weight' for 2 adapters"),
        ({"weights": [1.0, float("nan")]}, "finite"),
        ({"method": "cat", "rank": 1}, "cat is exact"),
        ({"method": "svd", "parameters": {"density": 1}}, "no parameter 'density'"),
        ({"rank": 13}, "No tensor of these adapters can have rank 13"),
        ({"rank": 0}, "a number from 1 on, not 0"),
        ({"method": "knots", "space": "core"}, "no place in the space core"),
        ({"space": "elsewhere"}, "one of core, dense, knots"),
    ],
)
def test_requests_without_a_meaning_are_refused(options, said):
    with pytest.raises((UsageError, RecipeError), match=said):
        combined([adapter(29), adapter(30)], **options)


def test_nothing_to_combine_is_refused():
    with pytest.raises(UsageError, match="nothing to combine"):
        combined([])


def test_a_damaged_adapter_is_named(tmp_path):
    broken = LowRankChange(np.full((12, 1), np.nan), np.ones((1, 10)))
    save(LowRankAdapter({Q: Factors(Q, broken, SHAPES[Q])}), tmp_path / "chat")
    with pytest.raises(NonFiniteError, match=r"q_proj.*chat"):
        combine_adapters([tmp_path / "chat"], tmp_path / "out")


def test_a_method_on_elements_sees_true_changes_and_zeros_where_there_are_none():
    a, b = adapter(31), adapter(32, rank=5, shapes={Q: SHAPES[Q]})
    zero = {**{k: np.zeros(s) for k, s in SHAPES.items()}, **dense(b)}
    expected = ties(0.4, [1.0, 2.0])([dense(a), zero])
    asked = {"method": "ties", "weights": [1.0, 2.0], "parameters": {"density": 0.4}}
    found, _ = combined([a, b], **asked, energy=1.0)
    assert_same(found, expected, atol=1e-10)
    narrow, report = combined([a, b], **asked, rank=2)
    assert_same(narrow, {k: cut(m, 2) for k, m in expected.items()}, atol=1e-10)
    assert set(report.lost) == set(SHAPES)


def test_whatever_the_ending_the_record_is_there_and_the_change_is_the_same(tmp_path):
    places = [tmp_path / name for name in ("a", "b")]
    for place, seed in zip(places, (33, 34), strict=True):
        save(adapter(seed), place)
    for method, parameters in (
        ("ties", {"density": 0.5}),
        ("lego", {}),
        ("knots", {"density": 0.5}),
    ):
        made = [
            combine_adapters(
                places,
                tmp_path / out,
                method=method,
                parameters=parameters,
                rank=4,
                dialect="kohya",
                force=True,
            )
            for out in ("folder", "file.safetensors")
        ]
        assert made[0].manifest.outputs == made[1].manifest.outputs
        assert made[0].lost == made[1].lost
        folder, file = (
            read(tmp_path / "folder/adapter.safetensors"),
            read(tmp_path / "file.safetensors"),
        )
        assert_same(folder, dense(file), atol=0)
