"""Adapters combined by registered methods: the numbers of the same method on the models that they make."""

from __future__ import annotations

import numpy as np
import pytest

from weightsmith.adapters.bounds import Bound
from weightsmith.adapters.combining import combine, combine_in
from weightsmith.adapters.lego import Lego
from weightsmith.adapters.low_rank import low_rank_adapter
from weightsmith.adapters.reading import open_adapter
from weightsmith.adapters.spaces import CoreSpace, Knots
from weightsmith.adapters.writing import write_adapter
from weightsmith.engine.adapter_api import combine_adapters
from weightsmith.engine.adapter_combination import combine_loaded, metric_weights
from weightsmith.engine.api import merge_state_dicts
from weightsmith.errors import RecipeError, UsageError

from ..adapters.lora import SHAPES, adapter, assert_same, cut, dense, ties  # noqa: TID252 - two rooms share it

torch = pytest.importorskip("torch")
FULL = Bound(energy=1.0)


def models(adapters):
    """A base and what the adapters make of it, in float64."""
    rng = np.random.default_rng(99)
    base = {key: rng.normal(size=shape) for key, shape in SHAPES.items()}
    experts = [{key: base[key] + dense(a)[key] for key in base} for a in adapters]
    return [{k: torch.from_numpy(v) for k, v in state.items()} for state in (base, *experts)]


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("ties", {"density": 0.3}),
        ("ties", {"density": 0.3, "trim_scope": "tensor", "lambda": 0.7}),
        ("dare_linear", {"density": 0.4}),
        ("dare_ties", {"density": 0.4}),
        ("breadcrumbs", {"density": 0.5}),
        ("della", {"density": 0.6, "epsilon": 0.1}),
    ],
)
def test_a_method_gives_what_it_gives_for_the_models_less_their_base(method, parameters, seed):
    adapters = [adapter(1), adapter(2, rank=5), adapter(3, rank=1)]
    weights = [1.0, -0.5, 0.25]
    found, report = combine_loaded(
        adapters, method, weights, parameters=parameters, seed=seed, bound=FULL
    )
    base, *experts = models(adapters)
    expected = merge_state_dicts(
        method,
        experts,
        base=base,
        parameters=parameters,
        per_expert=[{"weight": w} for w in weights],
        seed=seed,
    )
    assert_same(found, {k: (expected[k] - base[k]).numpy() for k in SHAPES}, atol=1e-10)
    assert report.method == method
    assert report.weights == tuple(weights)


def test_ties_is_the_papers_on_true_changes():
    adapters = [adapter(4), adapter(5, scale=3.0)]
    found, _ = combine_loaded(adapters, "ties", [1.0, 1.0], parameters={"density": 0.2}, bound=FULL)
    assert_same(found, ties(0.2, [1.0, 1.0])([dense(a) for a in adapters]), atol=1e-10)


def test_without_a_bound_the_rank_is_the_largest_of_the_adapters():
    adapters = [adapter(6, rank=2), adapter(7, rank=4)]
    found, report = combine_loaded(adapters, "ties", parameters={"density": 0.5})
    whole, _ = combine_loaded(adapters, "ties", parameters={"density": 0.5}, bound=FULL)
    assert_same(found, {k: cut(m, 4) for k, m in dense(whole).items()}, atol=1e-10)
    assert all(t.lost > 0.0 for t in report.tensors)


def test_magnitude_prune_keeps_the_largest_elements_of_each_change():
    adapters = [adapter(8), adapter(9)]
    expected = {key: np.zeros(shape) for key, shape in SHAPES.items()}
    for weight, one in zip([1.0, -2.0], adapters, strict=True):
        for key, matrix in dense(one).items():
            limit = np.sort(abs(matrix).reshape(-1))[-int(0.3 * matrix.size)]
            expected[key] += weight * np.where(abs(matrix) >= limit, matrix, 0.0)
    found, _ = combine_loaded(
        adapters, "magnitude_prune", [1.0, -2.0], parameters={"density": 0.3}, bound=FULL
    )
    assert_same(found, expected, atol=1e-10)


def test_one_adapter_with_weight_one_and_nothing_dropped_is_itself():
    one = adapter(10, scale=2.5)
    for method in ("ties", "dare_linear", "dare_ties", "magnitude_prune", "knots", "core_space"):
        found, report = combine_loaded([one], method, [1.0], parameters={"density": 1.0})
        assert_same(found, dense(one), atol=1e-10)
        assert report.lost == 0.0


def test_tensors_are_merged_one_by_one_unless_the_method_counts_over_the_model(monkeypatch):
    seen = []

    def watched(method, experts, **rest):
        seen.append(len(experts[0]))
        return merge_state_dicts(method, experts, **rest)

    monkeypatch.setattr("weightsmith.engine.adapter_combination.merge_state_dicts", watched)
    adapters = [adapter(11), adapter(12)]
    combine_loaded(adapters, "dare_linear", parameters={"density": 0.5})
    assert seen == [1, 1, 1]
    seen.clear()
    combine_loaded(adapters, "ties", parameters={"density": 0.5})
    combine_loaded(adapters, "lines", parameters={})
    assert seen == [3, 3]


def test_random_masks_depend_on_the_seed_alone():
    adapters = [adapter(13), adapter(14)]
    options = {"parameters": {"density": 0.5}, "bound": FULL}
    first, _ = combine_loaded(adapters, "dare_linear", seed=1, **options)
    again, _ = combine_loaded(adapters, "dare_linear", seed=1, **options)
    other, _ = combine_loaded(adapters, "dare_linear", seed=2, **options)
    for key, matrix in dense(first).items():
        assert np.array_equal(matrix, dense(again)[key])
        assert not np.allclose(matrix, dense(other)[key])


@pytest.mark.parametrize("method", ["linear", "cat", "svd", "lego", "task_arithmetic"])
def test_factored_methods_are_those_of_the_library(method):
    adapters = [adapter(15), adapter(16)]
    found, report = combine_loaded(adapters, method, [0.5, -0.25])
    assert_same(found, dense(combine(adapters, method, [0.5, -0.25])[0]))
    assert report.method == method


def test_methods_that_come_down_to_a_sum_stay_factored():
    adapters = [adapter(15), adapter(16)]
    for method, parameters, weights in (
        ("task_arithmetic", {"lambda": 0.5}, [1.0, -0.5]),
        ("linear", {"normalize": False}, [2.0, -1.0]),
        ("dare_linear", {"density": 1.0}, [2.0, -1.0]),
        ("knots", {"merger": "task_arithmetic", "lambda": 0.5}, [1.0, -0.5]),
    ):
        found, report = combine_loaded(adapters, method, [2.0, -1.0], parameters=parameters)
        assert {f.change.rank for f in found.factors.values()} == {6}
        assert report.weights == tuple(weights)
        assert_same(found, dense(combine(adapters, "cat", weights)[0]))


def test_knots_with_a_method_and_the_method_in_knots_are_the_same():
    adapters = [adapter(17), adapter(18)]
    one, _ = combine_loaded(adapters, "knots", [1.0, 2.0], parameters={"density": 0.3})
    for space in ("knots", Knots()):
        other, _ = combine_loaded(
            adapters, "ties", [1.0, 2.0], space=space, parameters={"density": 0.3}
        )
        assert_same(other, dense(one))


@pytest.mark.parametrize("method", ["knots", "core_space"])
def test_the_share_that_ties_keeps_in_a_space_is_counted_over_all_tensors(method):
    adapters = [adapter(27), adapter(28, scale=5.0)]
    weights = [1.0, 2.0]
    found, _ = combine_loaded(adapters, method, weights, parameters={"density": 0.2})
    space = Knots() if method == "knots" else CoreSpace()
    expected, _ = combine_in(adapters, space, ties(0.2, weights))
    assert_same(found, dense(expected), atol=1e-9)


def test_dare_drops_coefficients_in_the_space_and_keeps_their_expectation():
    shapes = {"model.layers.0.mlp.up_proj.weight": (6, 8)}
    adapters = [adapter(29, shapes=shapes), adapter(30, shapes=shapes)]
    expected = sum(dense(a)["model.layers.0.mlp.up_proj.weight"] for a in adapters)
    total = np.zeros((6, 8))
    for seed in range(200):
        found, _ = combine_loaded(
            adapters,
            "knots",
            [1.0, 1.0],
            parameters={"merger": "dare_linear", "density": 0.5},
            seed=seed,
        )
        total += dense(found)["model.layers.0.mlp.up_proj.weight"] / 200
    off = np.linalg.norm(total - expected) / np.linalg.norm(expected)
    # A single draw is off by about 1; the mean of 200 by about 1 / sqrt(200).
    assert 0.0 < off < 0.15


def test_options_of_spaces_and_of_lego_are_parameters():
    adapters = [adapter(17), adapter(18)]
    one, _ = combine_loaded(adapters, "knots", parameters={"side": "inputs", "density": 0.3})
    other, _ = combine_loaded(
        adapters, "ties", space=Knots(side="inputs"), parameters={"density": 0.3}
    )
    assert_same(one, dense(other))
    one, _ = combine_loaded(adapters, "lego", parameters={"norm": "inf"}, bound=Bound(rank=2))
    other, _ = combine(adapters, "lego", lego=Lego(rank=2, norm="inf"))
    assert_same(one, dense(other))


@pytest.mark.parametrize("method", ["iso_c", "tsv_m"])
def test_matrix_methods_run_in_the_core(method):
    adapters = [adapter(19), adapter(20)]
    small, _ = combine_loaded(adapters, method, space="core")
    whole, _ = combine_loaded(adapters, method, bound=FULL)
    assert list(dense(small)) == list(SHAPES)
    if method == "tsv_m":
        # Singular directions do not care for an orthonormal change of coordinates.
        assert_same(small, dense(whole), atol=1e-8)


def test_weights_from_metrics_sum_to_one_and_are_those_of_the_formula():
    assert metric_weights([1.0, 2.0]) == pytest.approx([2 / 3, 1 / 3])
    assert metric_weights([1.0, 2.0], penalty=0.0) == pytest.approx([0.5, 0.5])
    assert metric_weights([1.0, 3.0], by="step") == pytest.approx([0.25, 0.75])
    e = np.exp([-2.0 * 1.0, -2.0 * 2.0])
    assert metric_weights([1.0, 2.0], normalization="softmax", penalty=2.0) == pytest.approx(
        list(e / e.sum())
    )
    adapters = [adapter(21), adapter(22)]
    found, report = combine_loaded(
        adapters, "metrics_weighted", parameters={"metric": [1.0, 2.0], "by": "loss"}
    )
    assert report.weights == pytest.approx((2 / 3, 1 / 3))
    assert_same(found, dense(combine(adapters, "linear", [2 / 3, 1 / 3])[0]))


@pytest.mark.parametrize(
    ("method", "options", "said", "error"),
    [
        ("tise", {}, "ties", RecipeError),
        ("ties", {"parameters": {"densty": 1}}, "no parameter 'densty'", RecipeError),
        ("linear", {"parameters": {"density": 1}}, "no parameter 'density'", RecipeError),
        ("svd", {"parameters": {"density": 1}}, "no parameter 'density'", UsageError),
        ("regmean", {}, "needs statistics", UsageError),
        ("ties", {"space": "elsewhere"}, "is no space", UsageError),
        ("ties", {"weights": [1.0]}, "1 value of 'weight' for 2 adapters", UsageError),
        ("lego", {"parameters": {"norm": "l3"}}, "l2 or inf, not 'l3'", UsageError),
        ("lego", {"parameters": {"reweight_output": "no"}}, "reweight_output", UsageError),
        ("knots", {"parameters": {"side": "left"}}, "outputs or inputs", UsageError),
        ("core_space", {"parameters": {"side": "inputs"}}, "no parameter 'side'", RecipeError),
        ("metrics_weighted", {}, "metric", UsageError),
        ("metrics_weighted", {"parameters": {"power": 1}}, "no parameter 'power'", UsageError),
        ("metrics_weighted", {"weights": [1.0, 1.0]}, "own weights", UsageError),
    ],
)
def test_requests_without_a_meaning_are_refused(method, options, said, error):
    with pytest.raises(error, match=said):
        combine_loaded([adapter(23), adapter(24)], method, **options)


@pytest.mark.parametrize(
    ("method", "parameters", "weights"),
    [
        ("linear", {}, [3.0, 1.0]),
        ("task_arithmetic", {"lambda": 0.5}, [1.0, -0.5]),
        ("ties", {"density": 0.3}, [1.0, 2.0]),
        ("dare_ties", {"density": 0.5}, [1.0, 0.5]),
    ],
)
def test_a_recipe_of_adapters_gives_the_same(tmp_path, method, parameters, weights):
    folders = [str(tmp_path / name) for name in ("a", "b")]
    for folder, seed in zip(folders, (25, 26), strict=True):
        write_adapter(adapter(seed), folder)
    loaded = [low_rank_adapter(open_adapter(folder)) for folder in folders]
    found, _ = combine_loaded(
        loaded,
        method,
        weights,
        parameters=parameters,
        seed=3,
        labels=["a", "b"],
        bound=Bound(rank=6),
    )
    combine_adapters(
        folders,
        tmp_path / "out",
        method=method,
        weights=weights,
        parameters=parameters,
        seed=3,
        rank=6,
    )
    recorded = low_rank_adapter(open_adapter(tmp_path / "out"))
    assert_same(recorded, {key: dense(found)[key] for key in dense(recorded)}, atol=2e-5)
    assert set(dense(found)) == set(dense(recorded))


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("metrics_weighted", {"metric": [1.0, 3.0]}),
        ("ties", {"density": [0.2, 0.9]}),
        ("knots", {"density": 0.3}),
        ("core_space", {"merger": "task_arithmetic"}),
    ],
)
def test_a_folder_and_a_file_hold_the_same_change_whatever_the_method(tmp_path, method, parameters):
    folders = [str(tmp_path / name) for name in ("a", "b")]
    for folder, seed in zip(folders, (27, 28), strict=True):
        write_adapter(adapter(seed), folder)
    for out, dialect in (("out", "peft"), ("out.safetensors", "kohya")):
        combine_adapters(
            folders,
            tmp_path / out,
            method=method,
            parameters=parameters,
            dialect=dialect,
            rank=6,
        )
    one, other = (
        low_rank_adapter(open_adapter(tmp_path / name)) for name in ("out", "out.safetensors")
    )
    # Names in the file have no dots, since no base tells where they were.
    found = {key.replace(".", "_"): change for key, change in dense(one).items()}
    wanted = {
        key.replace(".", "_").removeprefix("unet_"): change for key, change in dense(other).items()
    }
    assert set(found) == set(wanted)
    for key, change in found.items():
        np.testing.assert_allclose(change, wanted[key], atol=2e-5)


def test_metrics_in_a_folder_are_one_for_each_adapter_and_not_along_the_depth(tmp_path):
    folders = [str(tmp_path / name) for name in ("a", "b")]
    adapters = [adapter(29), adapter(30)]
    for folder, one in zip(folders, adapters, strict=True):
        write_adapter(one, folder)
    made = combine_adapters(
        folders,
        tmp_path / "out",
        method="metrics_weighted",
        parameters={"metric": [1.0, 3.0]},
    )
    assert made.manifest is not None
    recorded = low_rank_adapter(open_adapter(tmp_path / "out"))
    wanted = dense(combine(adapters, "linear", [0.75, 0.25])[0])
    assert_same(recorded, {key: wanted[key] for key in dense(recorded)}, atol=2e-5)


def test_a_list_of_another_length_than_the_adapters_is_refused(tmp_path):
    folders = [str(tmp_path / name) for name in ("a", "b")]
    for folder, seed in zip(folders, (31, 32), strict=True):
        write_adapter(adapter(seed), folder)
    with pytest.raises(UsageError, match="3 values of 'density' for 2 adapters"):
        combine_adapters(
            folders, tmp_path / "out", method="ties", parameters={"density": [0.1, 0.2, 0.3]}
        )
    assert not (tmp_path / "out").exists()


def test_a_folder_with_a_record_is_replaced_by_one_without(tmp_path):
    folders = [str(tmp_path / name) for name in ("a", "b")]
    for folder, seed in zip(folders, (33, 34), strict=True):
        write_adapter(adapter(seed), folder)
    combine_adapters(folders, tmp_path / "out", method="ties")
    combine_adapters(folders, tmp_path / "out", method="knots", force=True)
    assert not (tmp_path / "out" / "weightsmith-manifest.json").exists()


def test_one_path_is_no_list_of_adapters(tmp_path):
    with pytest.raises(UsageError, match="adapters is a list of paths, not 'lora'"):
        combine_adapters("lora", tmp_path / "out")
