"""How recipes name a base with adapters, and how that is written back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from weightsmith.adapters.references import AdapterReference, Reference, parse_reference
from weightsmith.errors import RecipeError
from weightsmith.recipes import Recipe
from weightsmith.recipes.language.model_references import reference_data


def one(model: Any, **options: Any) -> Reference:
    recipe = Recipe.load(
        {"weightsmith": 1, "merge_method": "passthrough", "models": [{"model": model}]}, **options
    )
    assert recipe.document.models is not None
    (entry,) = recipe.document.models
    assert isinstance(entry.model, Reference)
    assert Recipe.load(recipe.dump()) == recipe
    return entry.model


@pytest.mark.parametrize(
    ("text", "base", "adapters"),
    [
        ("base", "base", []),
        ("owner/base@rev", "owner/base@rev", []),
        ("base+a", "base", [("a", None, 1.0)]),
        ("base@v1+owner/a@v2", "base@v1", [("owner/a", "v2", 1.0)]),
        ("base+a+b", "base", [("a", None, 1.0), ("b", None, 1.0)]),
        ("base+a:0.5+b@r:-2", "base", [("a", None, 0.5), ("b", "r", -2.0)]),
        ("base+a:1e-2", "base", [("a", None, 0.01)]),
        ("base+a:name", "base", [("a:name", None, 1.0)]),
    ],
)
def test_a_text_has_parts(
    text: str, base: str, adapters: list[tuple[str, str | None, float]]
) -> None:
    found = parse_reference(text)
    assert found.base == base
    assert found.adapters == tuple(AdapterReference(*adapter) for adapter in adapters)
    assert parse_reference(str(found)) == found
    assert str(one(text)) == str(found)


@pytest.mark.parametrize(
    "text", ["", " ", "+a", "base+", "base++a", "base+a@b@c", "base+:0.5", "b+a:1e999"]
)
def test_a_text_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"empty|PATH@REVISION|finite"):
        parse_reference(text)


def test_a_path_that_exists_is_taken_as_it_is(tmp_path: Path) -> None:
    for name in ("a+b", "a+b+c", "x@y", "l:2", "l"):
        (tmp_path / name).mkdir()
    seen = {
        "a+b": ("a+b", []),
        "a+b+c": ("a+b+c", []),
        "a+b+x@y": ("a+b", ["x@y"]),
        "a+b+a+b:0.5": ("a+b", ["a+b:0.5"]),
        "x@y+l:2": ("x@y", ["l:2"]),
        "x@y+l:3": ("x@y", ["l:3.0"]),
        "other+a+b+c": ("other", ["a+b+c"]),
    }
    for text, (base, adapters) in seen.items():
        found = parse_reference(text, tmp_path)
        assert (found.base, [str(a) for a in found.adapters]) == (base, adapters)
        assert found == parse_reference(text, tmp_path)
    assert parse_reference("x@y+l:2", tmp_path).adapters[0].strength == 1.0
    assert parse_reference("x@y+l:3", tmp_path).adapters[0].strength == 3.0


def test_a_dump_does_not_depend_on_what_exists(tmp_path: Path) -> None:
    (tmp_path / "a+b").mkdir()
    (tmp_path / "l:2").mkdir()
    found = one("a+b+l:2", base_dir=tmp_path)
    assert (found.path, [a.path for a in found.adapters]) == ("a+b", ["l:2"])
    assert reference_data(found) == {"model": {"path": "a+b"}, "lora": {"path": "l:2"}}
    again = one(reference_data(found))
    assert again == found


@pytest.mark.parametrize(
    ("mapping", "text"),
    [
        ({"model": "base", "lora": "a"}, "base+a"),
        ({"model": {"path": "base"}, "lora": {"path": "a", "revision": "r"}}, "base+a@r"),
        ({"model": {"path": "base", "revision": None}, "lora": "a@r"}, "base+a@r"),
        ({"model": "base", "lora": ["a", {"path": "b", "scale": 0.5}]}, "base+a+b:0.5"),
        ({"model": "base", "lora": {"path": "a", "scale": 2}}, "base+a:2.0"),
        ({"model": "base", "lora": None}, "base"),
        ({"model": "base+a"}, "base+a"),
    ],
)
def test_the_mapping_says_the_same(mapping: dict[str, Any], text: str) -> None:
    assert one(mapping) == one(text)
    schema = Recipe.json_schema()
    recipe = {"weightsmith": 1, "merge_method": "passthrough", "models": [{"model": mapping}]}
    if mapping.get("lora", ...) is not None and (
        mapping["model"] != {"path": "base", "revision": None}
    ):
        jsonschema.validate(recipe, schema)


@pytest.mark.parametrize(
    ("mapping", "words"),
    [
        ({"model": "base+a", "lora": "b"}, "one of the two places"),
        ({"model": "base", "lora": ""}, "An adapter must be"),
        ({"model": "base", "lora": {"scale": 1}}, "An adapter must be"),
        ({"model": "base", "lora": {"path": "a", "weight": 1}}, "An adapter must be"),
        ({"model": "base", "lora": {"path": "a", "scale": float("nan")}}, "finite number"),
        ({"model": "base", "lora": {"path": "a", "scale": True}}, "finite number"),
        ({"model": "base", "lora": [3]}, "An adapter must be"),
    ],
)
def test_a_wrong_mapping_is_refused(mapping: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        one(mapping)


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ({"rank": 0}, "rank"),
        ({"energy": 0}, "energy"),
        ({"energy": 1.5}, "energy"),
        ({"error": 1}, "error"),
        ({"dialect": "onnx"}, "dialect"),
        ({"ranks": 3}, "unknown key 'ranks'"),
    ],
)
def test_a_wrong_form_of_adapter_is_refused(form: dict[str, Any], words: str) -> None:
    recipe = {
        "weightsmith": 1,
        "merge_method": "linear",
        "models": [{"model": "a"}],
        "adapter": form,
    }
    with pytest.raises(RecipeError, match=words):
        Recipe.load(recipe)


def test_mergekit_has_words_for_one_adapter_without_scale() -> None:
    def written(model: Any) -> str:
        recipe = {"weightsmith": 1, "merge_method": "linear", "models": [{"model": model}]}
        return Recipe.load(recipe).to_mergekit()

    assert "base+a" in written("base+a")
    for model in ("base+a+b", "base+a:0.5"):
        with pytest.raises(RecipeError, match="mergekit cannot express"):
            written(model)


@pytest.mark.parametrize("strength", ["abc", "nan", "0,5", ""])
def test_what_stands_behind_an_adapter_that_exists_must_be_a_number(tmp_path, strength):
    (tmp_path / "lora").mkdir()
    with pytest.raises(ValueError, match=f"The strength '{strength}' of adapter 'lora'"):
        parse_reference(f"x+lora:{strength}", tmp_path)
