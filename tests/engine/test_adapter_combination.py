"""Adapters combined by registered methods: the numbers of the same method on the models that they make."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from weightsmith.adapters.adapter_reading import open_adapter
from weightsmith.deltas.changes import LowRankChange
from weightsmith.engine.adapter_api import combine_adapters, resize_adapter
from weightsmith.engine.api import merge_state_dicts
from weightsmith.engine.planning.plan_making import make_plan
from weightsmith.engine.records.verify import replay_output, verify_output
from weightsmith.errors import (
    CompatibilityError,
    OutputError,
    RecipeError,
    UsageError,
    VerificationError,
)
from weightsmith.lora.adapter_writing import write_adapter
from weightsmith.lora.lego import Lego, clustered
from weightsmith.lora.low_rank_adapters import Factors, LowRankAdapter, low_rank_adapter
from weightsmith.lora.spaces import CoreSpace, KnotsSpace
from weightsmith.methods.parts import registry
from weightsmith.recipes import Recipe

from ..adapters.combined import combined, computed  # noqa: TID252 - two rooms share it
from ..adapters.lora import SHAPES, adapter, assert_same, cut, dense, in_space, ties  # noqa: TID252

torch = pytest.importorskip("torch")
# All directions.
FULL = {"energy": 1.0}
LABELS = ("a", "b", "c")


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
    found, _ = combined(adapters, method, weights, parameters=parameters, seed=seed, **FULL)
    base, *experts = models(adapters)
    expected = merge_state_dicts(
        method,
        experts,
        base=base,
        parameters=parameters,
        per_expert=[{"weight": w} for w in weights],
        seed=seed,
        labels=LABELS,
    )
    assert_same(found, {k: (expected[k] - base[k]).numpy() for k in SHAPES}, atol=1e-10)


def test_ties_is_the_papers_on_true_changes():
    adapters = [adapter(4), adapter(5, scale=3.0)]
    found, _ = combined(adapters, "ties", [1.0, 1.0], parameters={"density": 0.2}, **FULL)
    assert_same(found, ties(0.2, [1.0, 1.0])([dense(a) for a in adapters]), atol=1e-10)


def test_without_a_bound_the_rank_is_the_largest_of_the_adapters():
    adapters = [adapter(6, rank=2), adapter(7, rank=4)]
    found, report = combined(adapters, "ties", parameters={"density": 0.5})
    whole, _ = combined(adapters, "ties", parameters={"density": 0.5}, **FULL)
    assert_same(found, {k: cut(m, 4) for k, m in dense(whole).items()}, atol=1e-10)
    assert set(report.lost) == set(SHAPES)
    assert all(0.0 < lost < 1.0 for lost in report.lost.values())


def test_magnitude_prune_keeps_the_largest_elements_of_each_change():
    adapters = [adapter(8), adapter(9)]
    expected = {key: np.zeros(shape) for key, shape in SHAPES.items()}
    for weight, one in zip([1.0, -2.0], adapters, strict=True):
        for key, matrix in dense(one).items():
            limit = np.sort(abs(matrix).reshape(-1))[-int(0.3 * matrix.size)]
            expected[key] += weight * np.where(abs(matrix) >= limit, matrix, 0.0)
    found, _ = combined(
        adapters, "magnitude_prune", [1.0, -2.0], parameters={"density": 0.3}, **FULL
    )
    assert_same(found, expected, atol=1e-10)


def test_one_adapter_with_weight_one_and_nothing_dropped_is_itself():
    one = adapter(10, scale=2.5)
    for method in ("ties", "dare_linear", "dare_ties", "magnitude_prune", "knots", "core_space"):
        found, report = combined([one], method, [1.0], parameters={"density": 1.0})
        assert_same(found, dense(one), atol=1e-10)
        assert report.lost == {}


def test_random_masks_depend_on_the_seed_alone():
    adapters = [adapter(13), adapter(14)]
    options = {"parameters": {"density": 0.5}, **FULL}
    first, _ = combined(adapters, "dare_linear", seed=1, **options)
    again, _ = combined(adapters, "dare_linear", seed=1, **options)
    other, _ = combined(adapters, "dare_linear", seed=2, **options)
    for key, matrix in dense(first).items():
        assert np.array_equal(matrix, dense(again)[key])
        assert not np.allclose(matrix, dense(other)[key])


def test_methods_that_come_down_to_a_sum_stay_factored():
    adapters = [adapter(15), adapter(16)]
    for method, parameters, weights in (
        ("task_arithmetic", {"lambda": 0.5}, [1.0, -0.5]),
        ("linear", {"normalize": False}, [2.0, -1.0]),
        ("dare_linear", {"density": 1.0}, [2.0, -1.0]),
        ("knots", {"merger": "task_arithmetic", "lambda": 0.5}, [1.0, -0.5]),
    ):
        found, _ = combined(adapters, method, [2.0, -1.0], parameters=parameters)
        assert {f.change.rank for f in found.factors.values()} == {6}
        a, b = map(dense, adapters)
        assert_same(found, {k: weights[0] * a[k] + weights[1] * b[k] for k in SHAPES})


def test_knots_with_a_method_and_the_method_in_knots_are_the_same():
    adapters = [adapter(17), adapter(18)]
    one, _ = combined(adapters, "knots", [1.0, 2.0], parameters={"density": 0.3})
    other, _ = combined(adapters, "ties", [1.0, 2.0], space="knots", parameters={"density": 0.3})
    assert_same(other, dense(one))


@pytest.mark.parametrize("method", ["knots", "core_space"])
def test_the_share_that_ties_keeps_in_a_space_is_counted_over_all_tensors(method):
    adapters = [adapter(27), adapter(28, scale=5.0)]
    weights = [1.0, 2.0]
    found, _ = combined(adapters, method, weights, parameters={"density": 0.2})
    space = KnotsSpace() if method == "knots" else CoreSpace()
    expected, _ = in_space(space, adapters, ties(0.2, weights))
    assert_same(found, expected, atol=1e-9)


def test_dare_drops_coefficients_in_the_space_and_keeps_their_expectation():
    # The same change at 200 tensors, each with masks of its own.
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(200)]
    adapters = []
    for seed in (29, 30):
        one = adapter(seed, shapes={names[0]: (6, 8)}).factors[names[0]]
        adapters.append(LowRankAdapter({n: Factors(n, one.change, one.shape) for n in names}))
    expected = sum(dense(a)[names[0]] for a in adapters)
    found, _ = combined(
        adapters, "knots", [1.0, 1.0], parameters={"merger": "dare_linear", "density": 0.5}
    )
    mean = sum(dense(found).values()) / len(names)
    off = np.linalg.norm(mean - expected) / np.linalg.norm(expected)
    # A single draw is off by about 1; the mean of 200 by about 1 / sqrt(200).
    assert 0.0 < off < 0.15


def test_options_of_spaces_and_of_lego_are_parameters():
    adapters = [adapter(17), adapter(18)]
    rule = ties(0.3, [1.0, 1.0])
    for method, options, space in (
        ("knots", {"side": "inputs"}, KnotsSpace(side="inputs")),
        ("knots", {"basis": "scaled"}, KnotsSpace(basis="scaled")),
        ("core_space", {"gauge": "stored"}, CoreSpace(gauge="stored")),
    ):
        found, _ = combined(adapters, method, parameters={**options, "density": 0.3})
        assert_same(found, in_space(space, adapters, rule)[0], atol=1e-9)
    found, _ = combined(adapters, "lego", parameters={"norm": "inf"}, rank=2)
    lego = Lego(rank=2, norm="inf")
    for key in SHAPES:
        parts = [(1.0, a.factors[key].change) for a in adapters]
        assert np.allclose(dense(found)[key], dense(clustered(parts, lego)), atol=1e-10)


@pytest.mark.parametrize("method", ["iso_c", "tsv_m"])
def test_matrix_methods_run_in_the_core(method):
    adapters = [adapter(19), adapter(20)]
    small, _ = combined(adapters, method, space="core")
    whole, _ = combined(adapters, method, **FULL)
    assert list(dense(small)) == list(SHAPES)
    if method == "tsv_m":
        # Singular directions do not care for an orthonormal change of coordinates.
        assert_same(small, dense(whole), atol=1e-8)


def metric_weights(metric, **options):
    built = registry.get("metrics_weighted").build(options, [{"metric": m} for m in metric])
    return built.weights()


def test_weights_from_metrics_sum_to_one_and_are_those_of_the_formula():
    assert metric_weights([1.0, 2.0]) == pytest.approx([2 / 3, 1 / 3])
    assert metric_weights([1.0, 2.0], penalty=0.0) == pytest.approx([0.5, 0.5])
    assert metric_weights([1.0, 3.0], by="step") == pytest.approx([0.25, 0.75])
    e = np.exp([-2.0 * 1.0, -2.0 * 2.0])
    assert metric_weights([1.0, 2.0], normalization="softmax", penalty=2.0) == pytest.approx(
        list(e / e.sum())
    )
    adapters = [adapter(21), adapter(22)]
    found, _ = combined(
        adapters, "metrics_weighted", parameters={"metric": [1.0, 2.0], "by": "loss"}
    )
    a, b = map(dense, adapters)
    assert_same(found, {k: 2 / 3 * a[k] + b[k] / 3 for k in SHAPES})


@pytest.mark.parametrize(
    ("method", "options", "said", "error"),
    [
        ("tise", {}, "ties", RecipeError),
        ("ties", {"parameters": {"densty": 1}}, "no parameter 'densty'", RecipeError),
        ("linear", {"parameters": {"density": 1}}, "no parameter 'density'", RecipeError),
        ("svd", {"parameters": {"density": 1}}, "no parameter 'density'", UsageError),
        ("regmean", {}, "needs statistics", RecipeError),
        ("ties", {"space": "elsewhere"}, "one of core, dense, knots", RecipeError),
        ("ties", {"weights": [1.0]}, "1 value of 'weight' for 2 adapters", UsageError),
        ("lego", {"parameters": {"norm": "l3"}}, "'l2' or 'inf', not 'l3'", RecipeError),
        (
            "lego",
            {"parameters": {"reweight_output": "no"}},
            "reweight_output.*true or false",
            RecipeError,
        ),
        ("knots", {"parameters": {"side": "left"}}, "'outputs' or 'inputs'", RecipeError),
        ("core_space", {"parameters": {"side": "inputs"}}, "no parameter 'side'", RecipeError),
        ("metrics_weighted", {}, "needs the parameter 'metric'", RecipeError),
        ("metrics_weighted", {"parameters": {"power": 1}}, "no parameter 'power'", RecipeError),
        ("metrics_weighted", {"weights": [1.0, 1.0]}, "takes no weights", UsageError),
    ],
)
def test_requests_without_a_meaning_are_refused(method, options, said, error):
    with pytest.raises(error, match=said):
        combined([adapter(23), adapter(24)], method, **options)


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
    assert "metric: 3.0" in made.manifest.recipe
    recorded = dense(low_rank_adapter(open_adapter(tmp_path / "out")))
    a, b = map(dense, adapters)
    assert_same(recorded, {key: 0.75 * a[key] + b[key] / 4 for key in recorded}, atol=2e-5)


def test_a_list_of_another_length_than_the_adapters_is_refused(tmp_path):
    folders = [str(tmp_path / name) for name in ("a", "b")]
    for folder, seed in zip(folders, (31, 32), strict=True):
        write_adapter(adapter(seed), folder)
    with pytest.raises(UsageError, match="3 values of 'density' for 2 adapters"):
        combine_adapters(
            folders, tmp_path / "out", method="ties", parameters={"density": [0.1, 0.2, 0.3]}
        )
    assert not (tmp_path / "out").exists()


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """Two adapters, a and b, beside which a test works."""
    for folder, seed in zip("ab", (33, 34), strict=True):
        write_adapter(adapter(seed), tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    return ["a", "b"]


METHODS = [
    ("ties", {}),
    ("knots", {}),
    ("core_space", {}),
    ("cat", {}),
    ("svd", {}),
    ("lego", {}),
    ("magnitude_prune", {"parameters": {"density": 0.5}}),
    ("iso_c", {"space": "core"}),
]


@pytest.mark.parametrize(("method", "asked"), METHODS)
def test_every_method_is_on_record_in_a_folder_and_in_a_file(pair, tmp_path, method, asked):
    for out, again, dialect in (
        ("out", "again", "peft"),
        ("o.safetensors", "p.safetensors", "kohya"),
    ):
        made = combine_adapters(pair, out, method=method, dialect=dialect, **asked)
        found = verify_output(tmp_path / out, recompute=2)
        assert found.ok
        assert found.tensors == len(made.manifest.outputs)
        assert len(found.recomputed) == 2
        assert replay_output(tmp_path / out, tmp_path / again).outputs == made.manifest.outputs


def test_a_file_that_was_changed_is_no_longer_as_recorded(pair, tmp_path):
    combine_adapters(pair, "out.safetensors", method="knots", dialect="kohya")
    file = tmp_path / "out.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    problems = verify_output(file).problems
    assert any("the file was changed" in problem for problem in problems)
    assert any("was changed: its digest" in problem for problem in problems)
    write_adapter(adapter(1), tmp_path / "plain.safetensors", "kohya")
    with pytest.raises(VerificationError, match="no manifest in its metadata"):
        verify_output(tmp_path / "plain.safetensors")


def test_a_file_that_is_as_recorded_is_replaced_and_one_that_is_not_is_kept(pair, tmp_path):
    combine_adapters(pair, "out.safetensors", dialect="kohya")
    with pytest.raises(OutputError, match="exists"):
        combine_adapters(pair, "out.safetensors", method="knots", dialect="kohya")
    combine_adapters(pair, "out.safetensors", method="knots", dialect="kohya", force=True)
    file = tmp_path / "out.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + bytes(4))
    with pytest.raises(OutputError, match="was changed since"):
        combine_adapters(pair, "out.safetensors", dialect="kohya", force=True)
    with pytest.raises(OutputError, match="peft format is a folder"):
        combine_adapters(pair, "other.safetensors")


def test_an_adapter_without_a_record_is_replaced_by_one_with_it_unless_it_was_edited(
    pair, tmp_path
):
    write_adapter(adapter(35), tmp_path / "out")
    combine_adapters(pair, "out", method="knots", force=True)
    assert verify_output(tmp_path / "out").ok
    resize_adapter("a", "out", rank=1, force=True)
    assert verify_output(tmp_path / "out", recompute=1).ok
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="notes"):
        combine_adapters(pair, "out", force=True)


def test_no_method_of_adapters_needs_torch(pair, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for i, (method, asked) in enumerate(METHODS):
        combine_adapters(pair, f"out{i}", method=method, **asked)


def test_what_has_no_factors_is_merged_by_its_elements_and_counted_apart():
    """TIES of density 1/2: the trim of biases does not depend on how large the coordinates are."""
    name = "model.layers.0.self_attn.q_proj.bias"
    rng = np.random.default_rng(36)
    biases = [rng.normal(size=12).astype(np.float32) for _ in range(2)]
    for scale in (1.0, 1e-3):
        adapters = [
            adapter(37 + i, scale=scale, added={name: bias}) for i, bias in enumerate(biases)
        ]
        found, _ = combined(adapters, "ties", space="knots", parameters={"density": 0.5})
        expected = ties(0.5, [1.0, 1.0])([{name: bias.astype(np.float64)} for bias in biases])
        assert np.allclose(found.added[name], expected[name], atol=1e-7)
        whole = in_space(KnotsSpace(), adapters, ties(0.5, [1.0, 1.0]))[0]
        assert_same(found, whole, atol=1e-9)


@pytest.mark.usefixtures("pair")
def test_the_space_is_what_the_plan_tells_and_computes():
    recipe = {
        "weightsmith": 1,
        "merge_method": "ties",
        "models": [{"model": "a"}, {"model": "b"}],
        "adapter": {"space": {"knots": {"side": "inputs"}}},
    }
    plan = make_plan(Recipe.load(recipe))
    shapes = {t.output.name: t.output.shape for t in plan.tensors}
    # Six ranks together, and the other side of each matrix.
    assert shapes == {name: (6, shape[0]) for name, shape in SHAPES.items()}
    assert any("in the space knots" in f.message for f in plan.findings)
    assert plan.write_bytes == sum(4 * 6 * sum(shape) for shape in SHAPES.values())


@pytest.mark.usefixtures("pair")
def test_a_recipe_inside_a_recipe_is_merged_in_the_space_too(tmp_path):
    inner = {
        "weightsmith": 1,
        "merge_method": "ties",
        "models": [{"model": "a"}, {"model": "b"}],
        "parameters": {"density": 0.4},
    }
    recipe = {
        "weightsmith": 1,
        "merge_method": "linear",
        "models": [{"model": inner}, {"model": "b"}],
        "adapter": {"space": "core"},
    }
    found, _ = computed(make_plan(Recipe.load(recipe)))
    adapters = [low_rank_adapter(open_adapter(tmp_path / name)) for name in "ab"]
    merged, _ = in_space(CoreSpace(), adapters, ties(0.4, [1.0, 1.0]))
    b = dense(adapters[1])
    assert set(found.factors) == set(b)
    for key, factors in found.factors.items():
        assert np.allclose(dense(factors.change), (merged[key] + b[key]) / 2, atol=1e-9)
    with pytest.raises(RecipeError, match="`adapter` belongs to the outermost recipe"):
        Recipe.load({**recipe, "models": [{"model": {**inner, "adapter": {"space": "core"}}}]})


def test_adapters_that_change_nothing_have_no_space():
    zero = adapter(1, scale=0.0)
    with pytest.raises(CompatibilityError, match="nothing to combine"):
        combined([zero, zero], "knots")
    # Beside one that does, they count as zeros.
    found, _ = combined([zero, adapter(2)], "knots", parameters={"density": 1.0})
    assert_same(found, dense(adapter(2)), atol=1e-9)


def test_factors_that_are_zero_in_all_adapters_stay_zero_in_a_space():
    name = next(iter(SHAPES))
    adapters = []
    for seed in (1, 2):
        one = adapter(seed)
        none = LowRankChange(np.zeros((12, 1)), np.ones((1, 10)))
        factors = {**one.factors, name: Factors(name, none, SHAPES[name])}
        adapters.append(LowRankAdapter(factors))
    found, _ = combined(adapters, "core_space", parameters={"density": 1.0})
    assert set(found.factors) == set(SHAPES)
    assert not dense(found)[name].any()


def test_one_path_is_no_list_of_adapters(tmp_path):
    with pytest.raises(UsageError, match="adapters is a list of paths, not 'lora'"):
        combine_adapters("lora", tmp_path / "out")
