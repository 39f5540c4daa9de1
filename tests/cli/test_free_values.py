"""`plan` lists free numbers, and `merge --values` writes the ordinary recipe with values on record."""

from __future__ import annotations

import json

import pytest

from weightsmith.recipes import load

RECIPE = """
weightsmith: 1
merge_method: task_arithmetic
base_model: base
models:
  - model: one
    parameters: {weight: {free: [0, 2], start: 1}}
  - model: two
parameters:
  lambda: {free: [0, 1.5], start: 0.3, per: layer}
"""


@pytest.fixture
def recipe(family):
    (family / "free.yaml").write_text(RECIPE)
    return family


NAMES = [
    "models[0].parameters.weight",
    "lambda[layer 0]",
    "lambda[layer 1]",
    "lambda[no layer]",
]


@pytest.mark.usefixtures("recipe")
def test_plan_lists_free_numbers_with_their_count(weightsmith):
    shown = weightsmith("plan", "free.yaml")
    assert shown.code == 0
    assert "Free numbers: 4" in shown.out
    assert "4 free numbers without a value" in shown.out
    for name in NAMES:
        assert name in shown.out
    listed = json.loads(weightsmith("plan", "free.yaml", "--json").out)
    assert not listed["runnable"]
    assert listed["free"][0] == {
        "name": NAMES[0],
        "low": 0.0,
        "high": 2.0,
        "start": 1.0,
        "tensors": 7,
        "count": 1,
    }
    assert sorted(row["name"] for row in listed["free"]) == sorted(NAMES)


@pytest.mark.usefixtures("recipe")
def test_a_plan_with_values_is_that_of_the_ordinary_recipe(weightsmith):
    listed = json.loads(weightsmith("plan", "free.yaml", "--json", "--values", "start").out)
    assert listed["runnable"]
    assert "free" not in listed


def test_merge_refuses_numbers_without_a_value(recipe, weightsmith):
    refused = weightsmith("merge", "free.yaml", "out")
    assert refused.code == 4
    assert "The recipe has 4 free numbers without a value" in refused.err
    assert not (recipe / "out").exists()


def test_what_is_on_record_is_the_recipe_with_values(recipe, weightsmith):
    (recipe / "v.json").write_text(json.dumps(dict(zip(NAMES, (0.5, 0.1, 0.2, 1.5), strict=True))))
    assert weightsmith("merge", "free.yaml", "out", "--values", "v.json").code == 0
    written = load(recipe / "out" / "weightsmith-recipe.yaml")
    assert "free" not in written.dump()
    assert written.to_mapping()["models"][0]["parameters"] == {"weight": 0.5}
    assert weightsmith("verify", "out", "--recompute", "3").code == 0
    assert weightsmith("replay", "out", "again").code == 0
    merged = [(recipe / name / "model.safetensors").read_bytes() for name in ("out", "again")]
    assert merged[0] == merged[1]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("lambda[layer 0]: 1\n", "has no value; give it a number"),
        ("x: 1\n", "no free number 'x'"),
        ("lambda[layer 0]: yes\n", "line 1, column 1"),
        ("[1, 2]\n", "a file of values is a mapping of keys"),
        ("a: 1\n---\nb: 1\n", "more than one document"),
    ],
)
def test_a_file_of_values_is_read_strictly(recipe, weightsmith, text, part):
    (recipe / "v.yaml").write_text(text)
    refused = weightsmith("merge", "free.yaml", "out", "--values", "v.yaml")
    assert refused.code == 4
    assert part in refused.err


@pytest.mark.usefixtures("recipe")
def test_a_missing_file_of_values_is_said(weightsmith):
    refused = weightsmith("merge", "free.yaml", "out", "--values", "nowhere.yaml")
    assert "The values 'nowhere.yaml' cannot be read" in refused.err


@pytest.mark.parametrize("given", ["null", "[a.safetensors]", "one", "0.5"])
def test_what_is_no_file_of_a_mask_is_refused_as_such(given, family, weightsmith):
    mask = "{free_mask: [0, 1], start: 1}"
    models = "".join(f"  - {{model: {name}, statistics: {mask}}}\n" for name in ("one", "two"))
    (family / "masks.yaml").write_text(
        "weightsmith: 1\nmerge_method: task_arithmetic\nbase_model: base\nmodify: [mask]\n"
        f"models:\n{models}"
    )
    (family / "v.yaml").write_text(f'"models[0].mask": {given}\n')
    refused = weightsmith("merge", "masks.yaml", "out", "--values", "v.yaml")
    assert refused.code == 4
    assert "file" in refused.err
    assert "safetensors" in refused.err
    assert "is a number" not in refused.err
