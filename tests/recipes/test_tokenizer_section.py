"""The `tokenizer:` section as a language: mergekit's forms, native keys, mistakes, and the way back."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from weightsmith.adapters import Reference
from weightsmith.errors import RecipeError
from weightsmith.recipes import Recipe
from weightsmith.recipes.language.mentioned import (
    base_reference,
    config_source_of,
    merged_references,
    other_references,
)

MERGEKIT = "merge_method: linear\nmodels:\n- {model: a, parameters: {weight: 1}}\n"
NATIVE = "weightsmith: 1\n" + MERGEKIT


def section(text: str, head: str = NATIVE) -> Any:
    return Recipe.load(head + text).document


@pytest.mark.parametrize(
    "text",
    [
        "tokenizer_source: union",
        "tokenizer_source: base",
        "tokenizer_source: owner/name",
        "tokenizer: {}",
        "tokenizer: {source: base, pad_to_multiple_of: 64}",
        "tokenizer: {source: {model: {path: x, revision: y}}}",
        "tokenizer: {source: union, tokens: {<s>: {source: a, force: true}, x: {source: {kind: zero}}}}",
        "tokenizer: {tokens: {x: {source: {kind: model_token, model: a, token_id: 3}}}}",
        "tokenizer: {tokens: {x: {source: {kind: model_token, model: a, token: y}}}}",
        "chat_template: chatml",
    ],
)
def test_mergekits_forms_are_read_and_written_back(text):
    read = Recipe.load(MERGEKIT + text)
    assert Recipe.load(read.dump()) == read
    written = yaml.safe_load(read.to_mergekit())
    assert Recipe.load(read.to_mergekit()) == read
    (key,) = yaml.safe_load(text)
    assert key in written


@pytest.mark.parametrize(
    "text", ["tokenizer_source: model:x/y", "tokenizer: {source: 'model:x/y'}"]
)
def test_the_old_prefix_of_a_model_is_understood(text):
    assert Recipe.load(MERGEKIT + text) == Recipe.load(MERGEKIT + text.replace("model:", ""))


@pytest.mark.parametrize(
    "text",
    [
        "missing: omp",
        "missing: {rule: omp, k: 32, tolerance: 0.001}",
        "missing: {rule: least_squares, ridge: 0, head: mean, bias: borrow}",
        "missing: {rule: subtokens, variant: first_last, head: {rule: procrustes, scale: false}}",
        "match: bytes",
    ],
)
def test_native_keys_are_read_and_written_back(text):
    read = Recipe.load(NATIVE + f"tokenizer:\n  {text}\n")
    assert Recipe.load(read.dump()) == read
    assert yaml.safe_load(read.dump())["tokenizer"] == yaml.safe_load(text)
    with pytest.raises(RecipeError, match="mergekit cannot express"):
        read.to_mergekit()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sorce: union", "did you mean 'source'"),
        ("missing: ompp", "did you mean 'omp'"),
        ("missing: {rule: omp, kk: 1}", "no parameter 'kk'"),
        ("missing: {rule: omp, k: 0}", "use at least 1"),
        ("missing: {rule: omp, k: many}", "k = 'many'"),
        ("missing: {rule: borrow, k: 1}", "no parameter 'k'"),
        ("missing: {k: 1}", "mapping with `rule:`"),
        ("match: byte", "'exact' or 'bytes'"),
        ("pad_to_multiple_of: 0", "expected a number from 1 on, not 0"),
        ("pad_to_multiple_of: yes", "pad_to_multiple_of"),
        ('tokens: {"": {source: {kind: zero}}}', "no characters"),
        ("tokens: {x: {forse: true}}", "did you mean 'force'"),
        (
            "tokens: {x: {source: {kind: model_token, model: a}}}",
            "exactly one of token and token_id",
        ),
        (
            "tokens: {x: {source: {kind: model_token, model: a, token: b, token_id: 1}}}",
            "exactly one",
        ),
        (
            "tokens: {x: {source: {kind: model_token, model: a, token_id: -1}}}",
            "expected a number from 0 on, not -1",
        ),
        ("tokens: {x: {source: {kind: zeros}}}", "zeros"),
        ("source: {merge_method: linear}", "name one, and no recipe"),
    ],
)
def test_mistakes_are_named_where_they_are(text, message):
    with pytest.raises(RecipeError, match=message) as caught:
        section(f"tokenizer:\n  {text}\n")
    assert "tokenizer" in str(caught.value)


@pytest.mark.parametrize("text", ["missing: omp", "match: bytes"])
def test_native_keys_need_a_native_recipe(text):
    with pytest.raises(RecipeError, match="belongs to native recipes"):
        section(f"tokenizer:\n  {text}\n", MERGEKIT)


def test_both_spellings_at_once_are_refused():
    with pytest.raises(RecipeError, match="exclude each other"):
        section("tokenizer_source: base\ntokenizer: {source: base}\n")


@pytest.mark.parametrize(
    "key", ["tokenizer: {source: base}", "tokenizer_source: union", "chat_template: chatml"]
)
def test_only_the_outermost_recipe_has_a_vocabulary(key):
    inner = "{merge_method: linear, weightsmith: 1, models: [{model: a}], " + key + "}"
    text = f"weightsmith: 1\nmerge_method: linear\nmodels:\n- model: {inner}\n- model: b\n"
    with pytest.raises(RecipeError, match="outermost recipe"):
        Recipe.load(text)
    name = key.partition(":")[0]
    outer = "merge_method: linear\nmodels: [{model: inner}, {model: b}]\nparameters: {weight: 1}\n"
    two = f"name: inner\n{MERGEKIT}{key}\n---\n{outer}"
    with pytest.raises(RecipeError, match=f"models\\[0\\].model.{name}"):
        Recipe.load(two)


def test_checkpoints_are_found_wherever_a_recipe_names_them():
    document = Recipe.load(
        {
            "weightsmith": 1,
            "merge_method": "task_arithmetic",
            "base_model": {
                "weightsmith": 1,
                "merge_method": "linear",
                "models": [{"model": "inner1"}, {"model": "inner2"}],
                "donor": "frame",
            },
            "models": [{"model": "one"}, {"model": "two"}, {"model": "one"}],
            "rules": [{"match": {"role": "norm"}, "keep": "kept"}],
            "assert": [{"equal": {"to": "compared"}}],
        }
    ).document
    assert list(map(str, merged_references(document))) == ["one", "two", "inner1", "inner2"]
    assert list(map(str, other_references(document))) == ["kept", "compared", "frame"]
    assert base_reference(document) == config_source_of(document) == Reference("frame")


def test_an_expression_has_its_base_by_name():
    document = Recipe.load(
        {
            "weightsmith": 1,
            "expression": "base + (one - base)",
            "checkpoints": {"one": "x", "base": "y"},
        }
    ).document
    assert list(map(str, merged_references(document))) == ["x", "y"]
    assert base_reference(document) == Reference("y")


def test_slices_and_modules_name_checkpoints_too():
    sliced = Recipe.load(
        {
            "weightsmith": 1,
            "merge_method": "passthrough",
            "slices": [
                {"sources": [{"model": "a", "layer_range": [0, 1]}]},
                {"sources": [{"model": "b", "layer_range": [1, 2]}]},
            ],
        }
    ).document
    assert list(map(str, merged_references(sliced))) == ["a", "b"]
    modules = Recipe.load(
        {
            "weightsmith": 1,
            "merge_method": "linear",
            "base_model": "vl",
            "modules": {"text_decoder": {"models": [{"model": "vl"}, {"model": "llm"}]}},
        }
    ).document
    assert list(map(str, merged_references(modules))) == ["vl", "llm"]
    assert config_source_of(modules) == Reference("vl")
