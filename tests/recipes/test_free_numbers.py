"""Free numbers in recipes: how they are written, what they are called, and the ordinary recipe with values."""

from __future__ import annotations

import pytest

import weightsmith
from weightsmith.checkpoints import open_checkpoint
from weightsmith.errors import RecipeError
from weightsmith.recipes import Recipe, fill, load, open_recipe, resolve
from weightsmith.recipes.language.expressions import checkpoint, free, methods

HEAD = "weightsmith: 1\nmerge_method: ties\nbase_model: base\nmodels: [{model: a}, {model: b}]\n"


def refusal(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(HEAD + text)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("parameters: {lambda: {free: [0, 1]}}", "column 14: parameters.lambda: the key 'start'"),
        ("parameters: {lambda: {free: [1, 0], start: 0}}", "[1, 0] is no interval"),
        ("parameters: {lambda: {free: [0, .inf], start: 0}}", "is no interval"),
        ("parameters: {lambda: {free: [0, 1], start: 2}}", "start: 2 lies outside of free: [0, 1]"),
        ("parameters: {lambda: {free: 1, start: 1}}", "expected a list, not 1"),
        ("parameters: {lambda: {free: [0, 1], start: 1, prr: layer}}", "did you mean 'per'?"),
        (
            "parameters: {lambda: {free: [0, 1], start: 1, per: lyer}}",
            "layer, block, tensor or role",
        ),
        ("parameters: {lambda: {free: [0, 1], start: 1, per: [layer, role]}}", "per: is expert"),
        (
            "parameters: {lambda: {free: [0, 1], start: 1, per: expert}}",
            "line 5, column 14: parameters.lambda: lambda is one value for all experts",
        ),
        (
            "parameters: {density: {free: [0, 1.5], start: 1}}",
            "line 5, column 14: parameters.density: density must lie in [0, 1], but is 1.5",
        ),
        ("parameters: {normalize: {free: [0, 1], start: 1}}", "normalize is no number"),
        (
            "parameters: {lambda: [{free: [0, 1], start: 1, per: layer}, 1]}",
            "column 23: parameters.lambda[0]: the entries of a gradient",
        ),
        (
            "parameters: {lambda: {filter: mlp, value: {free: [0, 1], start: 1, per: layer}}}",
            "`per: layer` goes with `match:`",
        ),
        ("modify: [{clip: {limit: {free: [-1, 1], start: 1}}}]", "limit must lie in [0, inf]"),
        ("then: [{lines: {merger: {free: [0, 1], start: 1}}}]", "merger is no number"),
        ("seed: {free: [0, 1], start: 1}", "expected a whole number"),
        (
            "rules: [{match: {role: mlp}, parameters: {weight: {free: [0, 1], start: 1, per: expert}}}]",
            "`per: expert` is for a value of all models listed below it",
        ),
        (
            "rules: [{match: {role: mlp}, parameters: {density: {free: [0, 2], start: 1}}}]",
            "density must lie in [0, 1]",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_where_it_stands(text, part):
    assert part in refusal(text)
    assert "recipe, line 5" in refusal(text)


def test_whole_numbers_have_whole_bounds():
    recipe = HEAD.replace("ties", "layer_swapping").replace(
        "weightsmith: 1", "weightsmith: 1\nseed: 1"
    )
    with pytest.raises(RecipeError, match="must be a whole number"):
        load(f"{recipe}parameters: {{bottom: {{free: [0, 1.5], start: 1}}}}")


def test_a_dialect_without_them_refuses_them():
    text = HEAD.replace("weightsmith: 1\n", "") + "parameters: {lambda: {free: [0, 1], start: 1}}"
    with pytest.raises(RecipeError, match="belongs to native recipes"):
        load(text)
    with pytest.raises(RecipeError, match="a free number"):
        load(HEAD + "parameters: {lambda: {free: [0, 1], start: 1}}").to_mergekit()


@pytest.fixture
def opened(make):
    """Checkpoints of three layers."""
    return {name: open_checkpoint(make(name, layers=3)) for name in ("base", "a", "b")}


def test_names_say_where_a_number_stands(opened):
    recipe = load(
        HEAD.replace("{model: b}", "{model: b, parameters: {weight: {free: [0, 2], start: 1}}}")
        + "parameters:\n"
        "  density: [0.5, {free: [0, 1], start: 0.4}]\n"
        "  lambda: {free: [0, 1], start: 1, per: layer}\n"
        "modify: [{clip: {limit: {free: [1, 2], start: 1}}}]\n"
        "then: [{lines: {alpha: {free: [0, 1], start: 0.5}}}]\n"
    )
    assert list(open_recipe(recipe, opened).numbers) == [
        "models[1].parameters.weight",
        "density[1]",
        "modify[0].limit",
        "then[0].alpha",
        *("lambda[no layer]", "lambda[layer 0]", "lambda[layer 1]", "lambda[layer 2]"),
    ]


def test_numbers_of_experts_are_written_with_the_models_that_do_not_have_one():
    recipe = load(
        HEAD.replace("{model: a}", "{model: a, parameters: {weight: 0.5}}")
        + "parameters: {density: 0.5, weight: {free: [0, 2], start: 1, per: expert}}"
    )
    assert recipe.to_mapping()["models"] == [
        {"model": "a", "parameters": {"weight": 0.5}},
        {"model": "b", "parameters": {"weight": {"free": [0.0, 2.0], "start": 1.0}}},
    ]
    assert recipe.to_mapping()["parameters"] == {"density": 0.5}


def test_a_recipe_with_free_numbers_is_written_and_read_back():
    recipe = load(HEAD + "parameters: {lambda: {free: [0, 1.5], start: 0.3, per: layer}}")
    assert load(recipe.dump()) == recipe
    assert load(recipe.to_mapping()).to_mapping() == recipe.to_mapping()


def values_of(found, recipe, opened):
    """The merged formulas' numbers by tensor, for what a filled recipe resolves to."""
    filled = fill(recipe, found, opened)
    return {o.name: dict(o.formula.shared) for o in resolve(filled, opened).outputs}


@pytest.mark.parametrize("per", ["layer", "role", "tensor"])
def test_each_tensor_gets_the_number_of_its_own(opened, per):
    recipe = load(HEAD + f"parameters: {{lambda: {{free: [0, 99], start: 0, per: {per}}}}}")
    numbers = open_recipe(recipe, opened).numbers
    values = {name: float(i + 1) for i, name in enumerate(numbers)}
    found = values_of(values, recipe, opened)
    assert len({given["lambda"] for given in found.values()}) == len(numbers)
    for name, given in found.items():
        (own,) = (n for n, value in values.items() if value == given["lambda"])
        key = own.removeprefix("lambda[").removesuffix("]")
        if per == "tensor":
            assert key == name
        elif per == "layer":
            layer = name.split(".")[2] if ".layers." in name else None
            assert key == ("no layer" if layer is None else f"layer {layer}")


def test_numbers_per_layer_stay_within_the_condition_they_stand_in(opened):
    recipe = load(
        HEAD
        + "parameters: {lambda: [{match: {role: mlp}, value: {free: [0, 9], start: 3, per: layer}}, "
        "{value: 0.5}]}"
    )
    assert list(open_recipe(recipe, opened).numbers) == [
        f"lambda[0].value[layer {i}]" for i in range(3)
    ]
    values = {f"lambda[0].value[layer {i}]": float(i) for i in range(3)}
    found = values_of(values, recipe, opened)
    assert found["model.layers.2.mlp.up_proj.weight"]["lambda"] == 2.0
    assert found["model.layers.2.self_attn.q_proj.weight"]["lambda"] == 0.5


def test_recipes_inside_a_recipe_have_numbers_of_their_own(opened):
    inner = (
        "{weightsmith: 1, merge_method: linear, models: [{model: a, parameters: {weight: %s}}, "
        "{model: b, parameters: {weight: 1}}]}"
    )
    free_one = "{free: [0, 9], start: 1}"
    text = HEAD.replace("{model: a}", "{model: %s}" % (inner % free_one)).replace(
        "{model: b}", "{model: %s}" % (inner % free_one)
    )
    recipe = load(text)
    names = list(open_recipe(recipe, opened).numbers)
    assert names == [f"models[{i}].model.models[0].parameters.weight" for i in range(2)]
    filled = fill(recipe, dict(zip(names, (2.0, 3.0), strict=True)), opened).to_mapping()
    weights = [m["model"]["models"][0]["parameters"]["weight"] for m in filled["models"]]
    assert weights == [2.0, 3.0]


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({}, "'lambda' has no value"),
        ({"lamda": 1.0}, "no free number 'lamda'; did you mean 'lambda'?"),
        ({"lambda": 2.0}, r"lies in \[0, 1\], but was given 2.0"),
        ({"lambda": float("nan")}, "was given nan"),
        ({"lambda": True}, "cannot be true"),
        ({"lambda": "x"}, "cannot be 'x'"),
        ([1.0], "a mapping of names to numbers"),
    ],
)
def test_values_are_of_all_numbers_and_within_their_bounds(opened, values, part):
    recipe = load(HEAD + "parameters: {lambda: {free: [0, 1], start: 1}}")
    with pytest.raises(RecipeError, match=part):
        fill(recipe, values, opened)


def test_filling_a_recipe_without_free_numbers_gives_itself_and_takes_no_values(opened):
    recipe = load(HEAD)
    assert fill(recipe, "start", opened) is recipe
    with pytest.raises(RecipeError, match="no free number 'x'; it has none"):
        fill(recipe, {"x": 1.0}, opened)


# Expressions ----------------------------------------------------------------------------------------------------


def expression(text: str) -> Recipe:
    return load(
        {
            "weightsmith": 1,
            "expression": text,
            "checkpoints": {"base": "base", "a": "a", "b": "b"},
        }
    )


def test_numbers_of_an_expression_are_called_by_their_order(opened):
    text = (
        "base + free(0, 2, start=0.5) * (a - base)\n + ties(base, a, b, lambda=free(-1, 1, start=0), "
        "weight=free(0, 1, start=1, per=expert)) - base"
    )
    found = open_recipe(expression(text), opened)
    assert set(found.numbers) == {
        *("expression[0]", "expression[1]"),
        *("expression[2][expert 1]", "expression[2][expert 2]"),
    }
    values = dict(zip(sorted(found.numbers), (0.25, -0.5, 0.125, 1.0), strict=True))
    assert found.filled(values).document.expression == (
        "base + 0.25 * (a - base)  + ties(base, a, b, lambda=(-0.5), weight=[0.125, 1.0]) - base"
    )


def test_python_spells_a_free_number_as_recipes_do():
    base, a = checkpoint("base"), checkpoint("a")
    made = base + free(0, 1.5, start=0.3) * (a - base)
    assert "free(0, 1.5, start=0.3)" in made.text
    merged = methods.ties(base, a, checkpoint("b"), density=free(0, 1, start=0.5, per="expert"))
    assert "density=free(0, 1, start=0.5, per=expert)" in merged.text
    assert weightsmith.free is free


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("base + free(0, 1) * (a - base)", "is not of the form free"),
        ("base + free(1, 0, start=0) * (a - base)", "is no interval"),
        ("base + free(0, 1, start=2) * (a - base)", "start lies outside"),
        ("base + free(0, 1, start=1, per=layer) * (a - base)", "per is `expert` in expressions"),
        ("base + free(0, 1, start=1, per=expert) * (a - base)", "parameters of methods alone"),
        ("base + (a - base) / free(-1, 1, start=1)", "divides by zero"),
        ("free(0, 1, start=1) * a", "scales a weight"),
        ("base + free(0, 1, start=1) * a", "coefficients that sum to"),
        ("free(0, 1, start=1)", "is the number"),
        ("ties(base, a, b, density=free(0, 2, start=1))", r"density must lie in \[0, 1\]"),
        ("ties(base, a, b, density=2 * free(0, 1, start=1))", r"density must lie in \[0, 1\]"),
        ("ties(base, a, b, density=free(0, a, start=1))", "is no number that is written out"),
    ],
)
def test_expressions_refuse_what_makes_no_sense(text, part):
    with pytest.raises(RecipeError, match=part):
        expression(text)
