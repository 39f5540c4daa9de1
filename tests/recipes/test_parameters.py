"""Gradients, filters, precedence and required values; expected numbers are worked out by hand."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from weightsmith.checkpoints.roles import Kind
from weightsmith.errors import RecipeError
from weightsmith.methods.parts import registry
from weightsmith.recipes import load
from weightsmith.recipes.language.parameter_settings import ABSENT, Lookup
from weightsmith.tensors.place import Place

PLACE = Place("model.layers.1.self_attn.q_proj.weight", Kind.ATTENTION_Q, 1)


def settings(value: object, semantics: str) -> object:
    """A setting as the schema reads it, taken from a recipe."""
    recipe = load(
        {
            "weightsmith": 1,
            "semantics": semantics,
            "merge_method": "linear",
            "models": [{"model": "a", "parameters": {"weight": value}}],
        }
    )
    return recipe.document.models[0].parameters["weight"]


def weight_at(value: object, t: float, name: str = PLACE.name, preset: str = "paper") -> object:
    parameter = registry.get("linear").parameters["weight"]
    return Lookup(parameter, (settings(value, preset),), "test", preset).at(
        name, replace(PLACE, depth=t)
    )


@pytest.mark.parametrize(
    ("gradient", "t", "expected"),
    [
        ([0, 1], 0.0, 0.0),
        ([0, 1], 1.0, 1.0),
        ([0, 1], 1 / 3, 1 / 3),
        ([0, 1, 0], 0.25, 0.5),
        ([0, 1, 0], 0.75, 0.5),
        ([0, 1, 0], 0.5, 1.0),
        ([2, 4, 8, 16], 0.5, 6.0),
        ([0.7], 0.0, 0.7),
        ([0.7], 1.0, 0.7),
        ([-1, 3], 0.125, -0.5),
    ],
)
def test_a_gradient_is_piecewise_linear_over_depth(gradient, t, expected):
    assert weight_at(gradient, t) == pytest.approx(expected, rel=1e-15)


def test_a_gradient_matches_exact_interpolation_at_every_depth():
    points = [3, -1, 4, 1, -5]
    for k in range(33):
        t = Fraction(k, 32)
        scaled = t * 4
        i = min(int(scaled), 3)
        exact = points[i] + (scaled - i) * (points[i + 1] - points[i])
        assert weight_at(points, float(t)) == float(exact)


def test_an_empty_gradient_gives_nothing_in_mergekits_semantics():
    assert weight_at([], 0.5, preset="mergekit") is ABSENT


def test_booleans_step_instead_of_interpolating():
    parameter = registry.get("linear").parameters["normalize"]
    lookup = Lookup(parameter, ((False, True),), "test", "mergekit")
    assert [lookup.at("x", replace(PLACE, depth=t)) for t in (0.0, 0.5, 0.99, 1.0)] == [
        False,
        False,
        False,
        True,
    ]


def test_the_parameter_decides_whether_a_list_of_zero_and_one_is_a_gradient_or_steps():
    normalize = registry.get("linear").parameters["normalize"]
    assert (
        Lookup(normalize, ((0, 1),), "test", "paper").at("x", replace(PLACE, depth=0.75)) is False
    )
    assert weight_at([0, 1], 0.75) == 0.75


def test_the_first_condition_whose_filter_is_part_of_the_name_counts():
    value = [
        {"filter": "q_proj", "value": 0.1},
        {"filter": "self_attn", "value": 0.2},
        {"value": 0.3},
    ]
    assert weight_at(value, 0, "l.self_attn.q_proj.weight") == 0.1
    assert weight_at(value, 0, "l.self_attn.k_proj.weight") == 0.2
    assert weight_at(value, 0, "l.mlp.up_proj.weight") == 0.3


def test_filters_are_substrings_not_patterns_and_mind_the_case():
    assert weight_at([{"filter": "q_.*", "value": 1}], 0, "q_proj") is ABSENT
    assert weight_at([{"filter": "Q_PROJ", "value": 1}], 0, "q_proj") is ABSENT
    assert weight_at([{"filter": "*", "value": 1}], 0, "q_proj") == 1
    assert weight_at([{"filter": "", "value": 1}], 0, "q_proj") == 1


def test_a_bare_condition_is_a_list_of_one():
    assert weight_at({"filter": "mlp", "value": [0, 2]}, 0.5, "mlp.up") == 1.0
    assert weight_at({"filter": "mlp", "value": [0, 2]}, 0.5, "attn") is ABSENT


def test_a_condition_that_matches_with_an_empty_value_ends_the_search():
    condition = {"filter": "a", "value": []}
    assert weight_at([condition, {"value": 1}], 0, "a", preset="mergekit") is ABSENT


def test_numbers_that_yaml_reads_as_text_are_numbers():
    assert weight_at("1e-5", 0) == 1e-5
    assert weight_at(["1e-5", "3e-5"], 0.5) == pytest.approx(2e-5)


def test_mergekit_takes_true_for_one_and_native_recipes_refuse_it():
    assert weight_at(True, 0, preset="mergekit") == 1.0
    with pytest.raises(RecipeError, match="must be a number"):
        weight_at(True, 0)


PRECEDENCE = """
merge_method: linear
modules:
  default:
    slices:
      - sources:
          - model: a
            layer_range: [0, 2]
            parameters: {SOURCE}
          - model: b
            layer_range: [0, 2]
            parameters: {weight: 9}
        parameters: {SLICE}
    parameters: {MODULE}
parameters: {TOP}
"""
LEVELS = ("SOURCE", "SLICE", "MODULE", "TOP")


@pytest.mark.parametrize("highest", range(4))
def test_closer_levels_win(make, solve, highest):
    make("a", 2)
    make("b", 2)
    text = PRECEDENCE
    for i, level in enumerate(LEVELS):
        text = text.replace("{" + level + "}", f"{{weight: {i + 1}}}" if i >= highest else "{}")
    formula = solve(text).formula("model.layers.1.mlp.up_proj.weight")
    assert formula.per_expert[0] == (("weight", float(highest + 1)),)
    assert formula.per_expert[1] == (("weight", 9.0),)


def test_a_level_whose_conditions_do_not_match_falls_through_to_the_next(make, solve):
    make("a"), make("b")
    solved = solve(
        """
merge_method: linear
models:
  - model: a
    parameters: {weight: [{filter: mlp, value: 5}]}
  - model: b
parameters:
  weight: 2
"""
    )
    assert solved.formula("model.layers.0.mlp.up_proj.weight").per_expert[0] == (("weight", 5.0),)
    assert solved.formula("model.norm.weight").per_expert[0] == (("weight", 2.0),)


def test_a_required_parameter_without_a_value_is_named_with_its_tensors(make, solve):
    make("a"), make("b")
    solved = solve(
        """
merge_method: linear
models:
  - {model: a, parameters: {weight: 1}}
  - {model: b, parameters: {weight: [{filter: mlp, value: 1}]}}
"""
    )
    sentence = solved.found()["missing-parameter"]
    assert "'weight' for model 'b'" in sentence
    assert "and " in sentence
    assert "more" in sentence


def test_native_recipes_have_the_papers_defaults(make, solve):
    make("a"), make("b")
    solved = solve("weightsmith: 1\nmerge_method: linear\nmodels: [{model: a}, {model: b}]\n")
    assert not solved.found()
    formula = solved.formula("model.norm.weight")
    assert (formula.preset, formula.per_expert) == ("paper", ((), ()))


def test_shared_filters_see_the_output_name_and_own_ones_the_source_name(make, solve):
    make("a", 6), make("b", 6)
    solved = solve(
        """
merge_method: slerp
base_model: a
slices:
  - sources: [{model: a, layer_range: [4, 6]}, {model: b, layer_range: [4, 6]}]
parameters:
  t: [{filter: layers.0., value: 0.25}, {filter: layers.4., value: 0.75}, {value: 0.5}]
"""
    )
    assert solved.formula("model.layers.0.mlp.up_proj.weight").shared == (("t", 0.25),)
    assert solved.formula("model.layers.1.mlp.up_proj.weight").shared == (("t", 0.5),)
    own = solve(
        """
merge_method: linear
slices:
  - sources: [{model: a, layer_range: [4, 6]}, {model: b, layer_range: [0, 2]}]
parameters:
  weight: [{filter: layers.0., value: 0.25}, {filter: layers.4., value: 0.75}, {value: 0.5}]
"""
    ).formula("model.layers.0.mlp.up_proj.weight")
    assert own.per_expert == ((("weight", 0.75),), (("weight", 0.25),))


def test_tensors_of_one_depth_share_their_parameters_unless_a_condition_looks_at_names(make, solve):
    for name in "abc":
        make(name, layers=3)
    text = (
        "merge_method: ties\nbase_model: a\nparameters: {density: [0, 1], weight: WEIGHT}\n"
        "models: [{model: b}, {model: c}]\n"
    )
    names = [f"model.layers.{i}.mlp.{x}_proj.weight" for i in (0, 2) for x in ("up", "down")]
    even = [solve(text.replace("WEIGHT", "0.5")).formula(name) for name in names]
    assert [dict(merge.per_expert[1])["density"] for merge in even] == [0.0, 0.0, 1.0, 1.0]
    named = text.replace("WEIGHT", "[{filter: up_proj, value: 1}, {value: 2}]")
    weights = [dict(solve(named).formula(name).per_expert[1])["weight"] for name in names]
    assert weights == [1.0, 2.0, 1.0, 2.0]
    solved = solve(text.replace("WEIGHT", "0.5"))
    first, second, other, _ = (solved.formula(name) for name in names)
    assert first.per_expert is second.per_expert
    assert first.per_expert is not other.per_expert
