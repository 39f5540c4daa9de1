"""Rules, selectors, recipes inside recipes, post-steps, assertions, and the way back to mergekit."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml

from weightsmith.checkpoints import assemble
from weightsmith.errors import RecipeError
from weightsmith.findings import Severity
from weightsmith.methods.parts import registry
from weightsmith.recipes import Recipe, load
from weightsmith.recipes.resolution.formula import Cast, Leaf, Merge
from weightsmith.recipes.resolution.resolve import resolve
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.stored import StoredTensor

NORM = "model.norm.weight"
Q = "model.layers.{}.self_attn.q_proj.weight"
UP = "model.layers.{}.mlp.up_proj.weight"
NATIVE = (
    "weightsmith: 1\nmerge_method: linear\nbase_model: base\nmodels: [{model: a}, {model: b}]\n"
)


@pytest.fixture
def three(make):
    for name in ("base", "a", "b"):
        make(name)


@pytest.mark.usefixtures("three")
def test_the_first_rule_that_matches_changes_the_method(solve):
    solved = solve(
        NATIVE
        + """
rules:
  - match: {role: attention, layers: [0, 2]}
    merge_method: ties
    parameters: {density: 0.5}
  - match: {role: attention}
    keep: a
  - match: {name: 'norm'}
    parameters: {weight: 3}
"""
    )
    assert not solved.found()
    ties = solved.formula(Q.format(1))
    assert (ties.method, ties.base) == ("ties", Leaf("base", Q.format(1)))
    assert ties.per_expert == ((("density", 0.5),), (("density", 0.5),))
    assert solved.formula(Q.format(2)) == Leaf("a", Q.format(2))
    assert solved.formula(NORM).per_expert == ((("weight", 3.0),), (("weight", 3.0),))
    linear = solved.formula(UP.format(0))
    assert (linear.method, linear.base, linear.labels) == ("linear", None, ("a", "b"))
    assert ties.scope_id != linear.scope_id == solved.formula(NORM).scope_id


@pytest.mark.usefixtures("three")
def test_conditions_select_by_role_layer_and_name(solve):
    solved = solve(
        NATIVE
        + """
parameters:
  weight:
    - {match: {role: [mlp, norm], layers: [1, 3]}, value: 5}
    - {match: {glob: 'lm_*'}, value: 6}
    - {value: 1}
"""
    )
    weights = {name: dict(o.formula.per_expert[0])["weight"] for name, o in solved.outputs.items()}
    assert weights[UP.format(0)] == 1
    assert weights[UP.format(1)] == weights[UP.format(2)] == 5
    assert weights["model.layers.1.input_layernorm.weight"] == 5
    assert weights[NORM] == 1
    assert weights["lm_head.weight"] == 6


@pytest.mark.usefixtures("three")
def test_a_rule_can_change_the_semantics(solve):
    solved = solve(
        NATIVE.replace("linear", "ties")
        + "rules: [{match: {role: mlp}, semantics: mergekit, parameters: {weight: 1}}]\n"
    )
    assert solved.formula(UP.format(0)).preset == "mergekit"
    assert solved.formula(NORM).preset == "paper"


@pytest.mark.usefixtures("three")
def test_a_rule_that_keeps_an_unknown_tensor_is_an_error(make, solve):
    make("c", without=(NORM,))
    solved = solve(NATIVE + "rules: [{match: {role: norm}, keep: c}]\n")
    assert repr(NORM) in solved.found()["missing-tensor"]


@pytest.mark.usefixtures("three")
def test_a_rule_that_no_tensor_is_left_for_is_a_warning(solve):
    rules = (
        "rules: [{match: {role: norm}, keep: a}, {match: {glob: model.norm.*}, keep: b}, "
        "{match: {glob: modle.*}, keep: b}]\n"
    )
    found = [f for f in solve(NATIVE + rules).resolved.findings if f.code == "idle-rule"]
    assert [(f.subject, f.severity) for f in found] == [
        ("rules[1]", Severity.WARNING),
        ("rules[2]", Severity.WARNING),
    ]


NESTED = """
weightsmith: 1
merge_method: slerp
base_model: a
parameters: {t: 0.5}
models:
  - model:
      name: inner
      merge_method: linear
      models: [{model: a}, {model: b}]
"""


@pytest.mark.usefixtures("three")
def test_a_recipe_inside_a_recipe_is_one_formula(solve):
    solved = solve(NESTED)
    outer = solved.formula(NORM)
    (inner,) = outer.experts
    assert isinstance(inner, Merge)
    assert inner.experts == (Leaf("a", NORM), Leaf("b", NORM))
    assert outer.labels == ("inner",)
    assert inner.scope_id != outer.scope_id
    assert list(solved.resolved.checkpoints) == ["a", "b"]


@pytest.mark.usefixtures("three")
def test_an_inner_dtype_rounds_as_if_the_result_had_been_written(solve):
    rounded = solve(NESTED + "      dtype: bfloat16\n")
    (inner,) = rounded.formula(NORM).experts
    assert isinstance(inner, Cast)
    assert inner.dtype is DType.BFLOAT16
    copied = solve(
        NESTED.replace("linear", "passthrough").replace(", {model: b}", "")
        + "      dtype: float32\n"
    )
    assert copied.formula(NORM).experts == (Leaf("a", NORM),)


@pytest.mark.usefixtures("three")
def test_equal_inner_recipes_are_resolved_once(solve):
    inner = "{merge_method: linear, models: [{model: a}, {model: b}]}"
    solved = solve(
        f"weightsmith: 1\nmerge_method: linear\nmodels: [{{model: {inner}}}, {{model: {inner}}}]\n"
    )
    first, second = solved.formula(NORM).experts
    assert first is second
    assert solved.formula(NORM).labels == ("merge", "merge#2")


@pytest.mark.usefixtures("three")
def test_an_inner_frankenmerge_can_be_sliced_again(solve):
    solved = solve(
        """
weightsmith: 1
merge_method: passthrough
slices:
  - sources:
      - layer_range: [3, 6]
        model:
          merge_method: passthrough
          slices:
            - sources: [{model: a, layer_range: [0, 4]}]
            - sources: [{model: b, layer_range: [0, 4]}]
"""
    )
    assert not solved.found()
    expected = [Leaf("a", Q.format(3)), Leaf("b", Q.format(0)), Leaf("b", Q.format(1))]
    assert [solved.formula(Q.format(k)) for k in range(3)] == expected


@pytest.mark.usefixtures("three")
def test_post_steps_wrap_the_result_in_order(solve):
    solved = solve(NATIVE + "then: [{lines: {alpha: 0.5, beta: 1}}, {truncate: {rank: 2}}]\n")
    last = solved.formula(UP.format(0))
    assert (last.method, last.shared) == ("truncate", (("rank", 2),))
    assert last.base == Leaf("base", UP.format(0))
    (first,) = last.experts
    assert (first.method, first.shared) == ("lines", (("alpha", 0.5), ("beta", 1.0)))
    (merged,) = first.experts
    assert merged.method == "linear"


@pytest.mark.usefixtures("three")
def test_a_post_step_that_needs_a_base_says_so(solve):
    with pytest.raises(RecipeError, match=r"then\[0\]: method truncate needs the base"):
        solve(NATIVE.replace("base_model: base\n", "") + "then: [{truncate: {rank: 2}}]\n")


@pytest.mark.usefixtures("three")
def test_assertions_are_about_the_selected_tensors(solve):
    solved = solve(
        NATIVE
        + """
assert:
  - finite: true
  - norm_ratio: {low: 0.5, high: 2, match: {role: mlp.up}}
  - equal: {to: a, match: {glob: lm_head.*}}
rules: [{match: {role: head}, keep: a}]
"""
    )
    finite, ratio, equal = solved.resolved.assertions
    assert (finite.kind, len(finite.tensors)) == ("finite", len(solved.outputs))
    assert ratio.tensors == tuple(UP.format(k) for k in range(4))
    assert ratio.references == tuple(Leaf("base", UP.format(k)) for k in range(4))
    assert (ratio.low, ratio.high) == (0.5, 2.0)
    assert equal.references == (Leaf("a", "lm_head.weight"),)


@pytest.mark.usefixtures("three")
@pytest.mark.parametrize(
    ("clause", "message"),
    [
        ("{equal: {to: a, match: {name: nothing}}}", "selects no tensor"),
        ("{equal: {to: short}}", "has no tensor"),
    ],
)
def test_assertions_about_nothing_are_refused(make, solve, clause, message):
    make("short", 2)
    with pytest.raises(RecipeError, match=message):
        solve(NATIVE + f"assert: [{clause}]\n")


@pytest.mark.usefixtures("three")
def test_norm_ratios_need_a_base(solve):
    with pytest.raises(RecipeError, match="the base has no tensor"):
        solve(NATIVE.replace("base_model: base\n", "") + "assert: [{norm_ratio: {low: 1}}]\n")


def test_a_recipe_of_mergekits_dialect_is_written_back_as_it_was():
    text = {
        "merge_method": "ties",
        "base_model": "m0",
        "models": [
            {"model": "m1@rev", "parameters": {"weight": [0, 0.5], "density": 0.5}},
            {
                "model": "m2",
                "parameters": {"weight": [{"filter": "mlp", "value": 1}, {"value": 2}]},
            },
        ],
        "parameters": {"normalize": True, "int8_mask": True},
        "dtype": "bfloat16",
        "tokenizer_source": "base",
    }
    written = load(text).to_mergekit()
    assert yaml.safe_load(written) == text
    assert load(written) == load(text)


def test_papers_defaults_are_written_out_where_mergekit_has_words_for_them():
    written = load(NATIVE).to_mergekit()
    assert yaml.safe_load(written)["parameters"] == {"weight": 1.0}


def _exported(method: str, parameters: str = "{}") -> dict[str, object]:
    text = NATIVE.replace("linear", method) + f"parameters: {parameters}\n"
    written: dict[str, object] = yaml.safe_load(load(text).to_mergekit())
    return written.get("parameters", {})


@pytest.mark.parametrize(
    ("method", "given", "written"),
    [
        ("breadcrumbs", "{}", {"weight": 1.0, "density": 0.14}),
        ("breadcrumbs", "{rescale_floor: 0.5}", {"weight": 1.0, "density": 0.14}),
        ("breadcrumbs", "{rescale: true, density: 1}", {"weight": 1.0, "rescale": True}),
        ("nearswap", "{}", {"t": 0.0001}),
        ("nearswap", "{t: [0.1, 1e-6]}", {"t": [0.1, 1e-6]}),
        ("karcher", "{tol: 1e-6, zero_norm: 1e-6}", {"tol": 1e-6, "max_iter": 50}),
        ("sce", "{uniform_below: 1e-6, smallest_divisor: 1e-6}", {"select_topk": 0.1}),
        ("model_stock", "{bounded: false, smallest_norm_product: 1e-6}", {}),
        ("dare_linear", "{density: [0, 0]}", {"weight": 1.0}),
        (
            "ties",
            "{trim_scope: tensor, keep_at_least: 1, zero_sum: positive, normalize: signed}",
            {"weight": 1.0, "density": 0.2, "normalize": True},
        ),
    ],
)
def test_parameters_that_cannot_change_a_result_are_left_to_mergekit(method, given, written):
    exported = _exported(method, given)
    kept = {key: value for key, value in exported.items() if key in written}
    assert kept == written
    assert set(exported) - set(written) <= {"density"}


@pytest.mark.parametrize(
    ("method", "given", "named"),
    [
        ("breadcrumbs", "{rescale: true}", "rescale_floor: 0.0 of method breadcrumbs"),
        ("breadcrumbs", "{rescale: [none, l1]}", "rescale_floor: 0.0"),
        ("nearswap", "{t: [0.1, 0.9e-6]}", "smallest_difference: 0.0"),
        ("nearswap", "{smallest_difference: 1e-3}", "parameters.smallest_difference"),
        ("karcher", "{}", "zero_norm: 0.0"),
        ("karcher", "{tol: [1e-6, 1e-7], zero_norm: 1e-6}", "parameters.zero_norm"),
        ("sce", "{smallest_divisor: 1e-6}", "uniform_below: 0.0 .*set `uniform_below: 1e-06` or"),
        ("dare_linear", "{density: [0, 1]}", "rescale: probability"),
        ("dare_linear", "{density: [{filter: mlp, value: 1}]}", "density: 0.1|rescale"),
        ("model_stock", "{}", "bounded: true .*set `bounded: false` or `semantics: mergekit`"),
    ],
)
def test_parameters_that_can_change_a_result_need_words_of_mergekit(method, given, named):
    with pytest.raises(RecipeError, match=named):
        _exported(method, given)


def test_mergekits_semantics_with_a_parameter_it_lacks_cannot_be_written_for_it():
    text = (
        NATIVE.replace("linear", "ties")
        + "semantics: mergekit\nparameters: {weight: 1, density: 0.5, trim_scope: model}"
    )
    with pytest.raises(RecipeError, match=r"parameters\.trim_scope"):
        load(text).to_mergekit()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (NATIVE + "rules: [{match: {role: mlp}, keep: a}]", "rules"),
        (NATIVE + "then: [{truncate: {rank: 2}}]", "then"),
        (NATIVE + "assert: [{finite: true}]", "assert"),
        (NATIVE.replace("linear", "ties"), "the paper's rule"),
        (NATIVE.replace("linear", "soup"), "no method called 'soup'"),
        (NATIVE + "parameters: {weight: {value: 1, match: {role: mlp}}}", "match"),
        (NESTED, "a method or recipe of its own"),
        ("weightsmith: 1\nexpression: a\ncheckpoints: {a: b}", "expression"),
    ],
)
def test_what_mergekit_cannot_express_is_named(text, message):
    with pytest.raises(RecipeError, match=message):
        load(text).to_mergekit()


def test_a_tied_result_of_a_recipe_beside_an_untied_model_names_a_way_that_works(make, solve):
    make("tied", head=False), make("untied")
    found = solve(
        """
weightsmith: 1
merge_method: linear
untie: true
models:
  - model: {name: inner, merge_method: passthrough, models: [{model: tied}]}
  - model: untied
missing: skip
"""
    ).found()
    assert "merge the inner recipe 'inner' on its own first" in found["tied-untied-mix"]


@pytest.mark.usefixtures("three")
def test_semantics_may_be_any_preset_of_a_method(solve):
    text = NATIVE.replace("linear", "dare_ties")
    solved = solve(text + "semantics: mergelm\nthen: [{lines: {alpha: 0.5}}]\n")
    assert solved.formula(UP.format(0)).experts[0].preset == "mergelm"
    ruled = solve(text + "rules: [{match: {role: mlp}, semantics: mergelm}]\n")
    presets = {ruled.formula(name).preset for name in (UP.format(0), Q.format(0))}
    assert presets == {"mergelm", "paper"}
    with pytest.raises(RecipeError, match=r"trim: 0.2 .*the rule of mergelm"):
        load(
            text + "semantics: mergelm\nparameters: {density: 1, zero_sum: positive}"
        ).to_mergekit()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            NATIVE + "semantics: mergelm\n",
            "line 5, column 1: semantics: linear has no preset 'mergelm'; write one of paper, mergekit.",
        ),
        (
            NATIVE.replace("linear", "dare_ties") + "semantics: mergelmm\n",
            "'mergelmm'; write one of paper, mergekit, mergelm.",
        ),
        (
            NATIVE + "rules: [{match: {role: mlp}, merge_method: ties, semantics: mergelm}]\n",
            "rules[0].semantics: ties has no preset 'mergelm'",
        ),
        (
            "weightsmith: 1\nsemantics: mergelm\nexpression: linear(a, b)\ncheckpoints: {a: x, b: y}\n",
            "linear has no preset 'mergelm'",
        ),
    ],
)
def test_semantics_that_no_method_has_are_refused_with_the_known_ones(text, message):
    with pytest.raises(RecipeError) as caught:
        load(text)
    assert message in str(caught.value)


def test_a_model_untied_outside_keeps_its_label_for_the_recipe_inside(make, solve):
    make("tied", head=False), make("untied")
    solved = solve(
        """
weightsmith: 1
merge_method: linear
untie: true
donor: tied
models:
  - model: {merge_method: passthrough, models: [{model: tied}]}
  - model: tied
  - model: untied
missing: skip
"""
    )
    assert solved.resolved.config_source == "tied"
    assert "lm_head.weight" in solved.resolved.checkpoints["tied"].tensors


def test_the_json_schema_accepts_recipes_and_refuses_unknown_keys():
    jsonschema = pytest.importorskip("jsonschema")
    schema = Recipe.json_schema()
    texts = [
        NATIVE + "parameters: {weight: [0, 1]}\nthen: [{truncate: {rank: 2}}, lines]\n",
        NATIVE + "rules: [{match: {role: mlp}, keep: a}]\nassert: [{finite: true}]\n",
        NATIVE + "parameters: {weight: [{filter: mlp, value: [0, 1]}, {value: 1}]}\n",
        NESTED,
        "weightsmith: 1\nexpression: (a + b) / 2\ncheckpoints: {a: x, b: {model: y}}\n",
    ]
    for text in texts:
        load(text)
        jsonschema.validate(yaml.safe_load(text), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(yaml.safe_load(NATIVE + "dtyp: float16\n"), schema)


def test_ten_thousand_tensors_of_three_models_resolve_in_about_a_second():
    def tensors(file: str) -> dict[str, StoredTensor]:
        names = [f"model.layers.{i}.mlp.w{k}.weight" for i in range(1000) for k in range(10)]
        return {
            name: StoredTensor(name, DType.BFLOAT16, (4, 4), Path(file), 100 + 32 * i)
            for i, name in enumerate(names)
        }

    opened = {
        name: assemble(tensors(name), None, path=Path(name), source=name)
        for name in ("a", "b", "c")
    }
    recipe = load(
        "merge_method: ties\nbase_model: a\nmodels: [{model: b}, {model: c}]\n"
        "parameters: {density: [0.1, 0.9], weight: [{filter: w3, value: [0, 1]}, {value: 1}]}\n"
    )
    started = time.process_time()
    resolved = resolve(recipe, opened)
    spent = time.process_time() - started
    assert len(resolved.outputs) == 10_000
    # Half a second where nothing else runs; the margin is for a busy machine, quadratic work takes minutes.
    assert spent < 4


def test_a_preset_under_its_former_name_is_understood_and_named():
    """What `knots` had as core_space is not the core space of the paper."""
    text = "weightsmith: 1\nmerge_method: knots\nsemantics: {}\nbase_model: b\nmodels: [{{model: a}}]\n"
    (finding,) = Recipe.load(text.format("core_space")).findings
    assert finding.code == "renamed-preset"
    assert finding.severity is Severity.WARNING
    assert "scaled_basis" in finding.fix
    assert "adapter: {space: core}" in finding.message
    assert not Recipe.load(text.format("scaled_basis")).findings
    spec = registry.get("knots")
    assert spec.defaults("core_space") == spec.defaults("scaled_basis") != spec.defaults()
    assert "core_space" not in spec.presets
