"""Whatever numbers, sizes and depths a recipe has, it is answered at once, from what exists."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest

from weightsmith.errors import RecipeError, UsageError
from weightsmith.recipes import load
from weightsmith.recipes.resolution.output_sections import distinct_labels

NATIVE = "weightsmith: 1\nmerge_method: linear\nmodels: [{model: a}, {model: b}]\n"


def refusal(source, **options) -> str:
    began = time.monotonic()
    with pytest.raises(RecipeError) as caught:
        load(source, **options)
    assert time.monotonic() - began < 5
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1500
    return message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (f"seed: {'9' * 5000}", "line 4, column 7: a whole number of more than 38 digits"),
        (f"seed: 0x{'f' * 5000}", "a whole number of more than 38 digits"),
        (f"seed: {'9' * 30}", "expected a number below 18446744073709551616"),
        (f"parameters: {{weight: [{'9' * 5000}]}}", "a whole number of more than 38 digits"),
        ("parameters: {weight: []}", "line 4, column 14: parameters.weight: the list is empty"),
        ("parameters: {weight: {value: []}}", "the list is empty"),
        ("parameters: !!python/object/apply:os.system [ls]", "the tag"),
        ("parameters: !!set {weight}", "the tag"),
        ("seed: !!int x", "'x' is not of the kind that its tag says"),
        ("seed: !!bool x", "'x' is not of the kind that its tag says"),
        (f"name: {'x' * 9000}\nnam: 1", "unknown key 'nam'"),
        (f"? {'x' * 9000}\n: 1", "unknown key"),
    ],
)
def test_values_that_nobody_means_are_refused_in_one_short_sentence(text, part):
    assert part in refusal(NATIVE + text + "\n")


@pytest.mark.parametrize(
    ("assignment", "part"),
    [
        ("seed=" + "9" * 5000, "more than 38 digits"),
        ("parameters=&a [*a]", "deep"),
        ("parameters=" + "[" * 5000, "deep"),
        (".".join("a" * 9000) + "=1", "more than 48 keys deep"),
        ("models." + "9" * 5000 + "=1", "no position in a list of 2"),
        ("seed=[1", "not valid YAML"),
        ("seed=!!python/name:os.system", "the tag"),
        ("seed=1\n--- \n2", "2 documents"),
    ],
)
def test_overrides_are_read_within_the_bounds_of_files(assignment, part):
    assert part in refusal(NATIVE, overrides=[assignment])


def test_dates_are_text():
    recipe = load(NATIVE.replace("model: b", "model: 2024-01-01"))
    assert str(recipe.document.models[1].model) == "2024-01-01"


def test_many_plain_values_are_not_blamed_on_aliases():
    message = refusal(NATIVE + f"parameters: {{weight: [{', '.join(['1'] * 200_001)}]}}\n")
    assert "more than 200000 values" in message
    assert "alias" not in message


def test_files_that_are_no_recipes_are_refused_by_their_size_or_kind(tmp_path, monkeypatch):
    with (tmp_path / "weights.yaml").open("wb") as file:
        file.truncate(1 << 40)
    assert "larger than 8,388,608 bytes" in refusal(tmp_path / "weights.yaml")
    assert "it is a device" in refusal(Path("/dev/zero"))
    assert "it is a folder" in refusal(tmp_path)
    monkeypatch.setattr("weightsmith.tensors.files.small_files._PATIENCE_FOR_A_WRITER", 0.05)
    os.mkfifo(tmp_path / "pipe.yaml")
    assert "is empty" in refusal(tmp_path / "pipe.yaml")


def test_a_source_of_another_type_and_mappings_beyond_the_bounds_are_refused():
    with pytest.raises(UsageError, match="a path, a text or a mapping"):
        load(5)
    inside: dict[str, object] = {"weightsmith": 1}
    inside["models"] = [inside]
    assert "nested more than 48 deep" in refusal(inside)
    assert "more than 38 digits" in refusal({"weightsmith": 1, "seed": 10**5000})


def chain(folder: Path, length: int) -> Path:
    """A file with `length` recipes in one another."""
    for i in range(length):
        model = "a" if i + 1 == length else f"r{i + 1}.yaml"
        (folder / f"r{i}.yaml").write_text(
            f"weightsmith: 1\nmerge_method: linear\nmodels: [{{model: {model}}}]\n"
        )
    return folder / "r0.yaml"


def test_recipes_may_be_so_deep_in_one_another_that_the_record_can_still_be_read(tmp_path):
    recipe = load(chain(tmp_path, 16))
    assert load(recipe.dump()).document == recipe.document
    assert "more than 16 deep in one another" in refusal(chain(tmp_path, 18))


def test_merges_of_one_file_may_not_be_deeper_in_one_another_than_files():
    texts = [
        f"name: m{i}\nmerge_method: linear\nmodels: [{{model: {'a' if i == 399 else f'm{i + 1}'}}}]\n"
        for i in range(400)
    ]
    assert "deep in one another" in refusal("---\n".join(texts))


@pytest.mark.parametrize(
    "expression",
    [
        "(1e308*1e308)*(a-b)+a",
        "a + 1e308*a - 1e308*b",
        "a / 1e-320",
        "linear(a, b, weight=[1e308*10, 1])",
        "a + (b - a) * (1e308 + 1e308)",
    ],
)
def test_numbers_of_expressions_that_overflow_are_refused(expression):
    keys = "checkpoints: {a: a, b: b}\n"
    message = refusal(f"weightsmith: 1\nexpression: {expression}\n{keys}")
    assert "has a number that is too large" in message


def test_an_expression_may_stand_on_several_lines():
    keys = "checkpoints: {a: a, b: b}\n"
    recipe = load(f"weightsmith: 1\nexpression: |\n  a\n  + 0.5 * (b\n  - a)\n{keys}")
    assert recipe.document.expression is not None
    message = refusal(f"weightsmith: 1\nexpression: |\n  a\n  + + * b\n{keys}")
    assert "malformed near character 7" in message


def test_a_long_expression_is_abridged_in_messages():
    terms = " + ".join(["a"] * 300) + " + c"
    message = refusal(f"weightsmith: 1\nexpression: {terms}\ncheckpoints: {{a: a}}\n")
    assert "..." in message
    assert "'c', which is not among" in message


FRAME = "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [%s, %s]}]}]\n"


@pytest.mark.parametrize("native", ["", "weightsmith: 1\n"])
@pytest.mark.parametrize("first", [0, 3, 10**11])
def test_a_range_of_layers_is_compared_with_the_layers_there_are(make, solve, native, first):
    make("a", layers=4)
    began = time.monotonic()
    found = solve(native + FRAME % (first, 10**12)).found()
    assert time.monotonic() - began < 2
    assert f"[{first}, 1000000000000] reaches past the 4 layers" in found["layer-range"]


def test_a_tensor_with_the_number_of_a_layer_that_no_model_has_is_no_layer(make, solve):
    make(
        "a", layers=2, extra={"model.layers.99999.mlp.up_proj.weight": np.zeros((8, 4), np.float32)}
    )
    with pytest.raises(RecipeError, match="come to 100000 layers, more than any model has"):
        solve("weightsmith: 1\n" + FRAME % (0, 100_000))


def test_padding_beyond_what_any_machine_gains_from_is_refused():
    message = refusal(NATIVE + "tokenizer: {pad_to_multiple_of: 1000000000}\n")
    assert "pad_to_multiple_of: expected a number up to 65536, not 1000000000" in message


@pytest.mark.parametrize("key", ["gate_mode: hidden", "experts: []", "experts_per_token: 2"])
def test_a_file_of_mergekit_moe_is_told_what_it_is(key):
    message = refusal(f"base_model: a\n{key}\ndtype: bfloat16\n")
    assert "line 2" in message
    assert "a file of mergekit-moe, which builds a mixture of experts" in message


def test_a_file_of_mergekit_evolve_is_told_what_it_is():
    assert "a file of mergekit-evolve" in refusal("genome: {models: [a, b]}\ntasks: []\n")


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ("models: [{model: a, parameters: {weight: 1, x: 2}}]", "no parameter 'x'"),
        ("rules: [{match: {layers: [0]}, keep: a}]", "expected a list of 2 values, not [0]"),
        (
            "rules: [{match: {layers: [0, 1, 2]}, keep: a}]",
            "a list of at most 2 values, not [0, 1, 2]",
        ),
        ("rules: [{match: {nam: x}, keep: a}]", "unknown key"),
        ("rules: {match: x}", "expected a list, not {match: 'x'}"),
        ("semantics: null\nmissing: maybe", "expected 'error', 'base' or 'skip', not 'maybe'"),
        ("adapter: {rank: 0}", "expected a number from 1 on, not 0"),
        ("adapter: {energy: 2}", "expected a number up to 1.0, not 2"),
        ("assert: [{finite: false}]", "expected true, not false"),
    ],
)
def test_mistakes_are_told_in_words_of_yaml(change, part):
    text = (
        NATIVE
        if "models" not in change
        else NATIVE.replace("models: [{model: a}, {model: b}]\n", "")
    )
    message = refusal(f"{text}{change}\n")
    assert part.lower() in message.lower()
    assert not any(
        word in message for word in ("tuple", "dict", "Input should", "validation", "None")
    )


def test_an_empty_list_in_a_file_of_mergekit_gives_no_value_and_is_named():
    (finding,) = load(
        NATIVE.replace("weightsmith: 1\n", "") + "parameters: {weight: []}\n"
    ).findings
    assert finding.code == "empty-list"
    assert "parameters.weight is an empty list" in finding.message


def test_advice_for_a_file_of_mergekit_says_what_its_native_keys_need(make, solve):
    make("a", vocabulary=8)
    make("b", vocabulary=9)
    theirs = "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n"
    advice = solve(theirs).found()["vocabulary-mismatch"]
    assert "`rules: [" in advice
    assert advice.endswith(
        "native keys need `weightsmith: 1` and `semantics: mergekit` on top of the recipe"
    )
    # The advice followed is a recipe that is read.
    load(
        f"weightsmith: 1\nsemantics: mergekit\n{theirs}rules: [{{match: {{role: [embedding, head]}}, keep: a}}]\n"
    )
    assert "on top" not in solve("weightsmith: 1\n" + theirs).found()["vocabulary-mismatch"]


def test_recipes_in_recipes_are_looked_for_where_models_are(tmp_path, monkeypatch):
    (tmp_path / "r" / "m").mkdir(parents=True)
    (tmp_path / "m").mkdir()
    (tmp_path / "w").mkdir()
    inner = "weightsmith: 1\nmerge_method: linear\nmodels: [{model: m}]\n"
    (tmp_path / "r" / "inner.yaml").write_text(inner)
    outer = tmp_path / "r" / "outer.yaml"

    def model_of(text: str) -> str:
        outer.write_text(f"weightsmith: 1\nmerge_method: linear\nmodels: [{{model: {text}}}]\n")
        read = load(outer).document.models[0].model
        return str(read.models[0].model)

    # From the working directory first, as a model is; else from the folder of the recipe that names it.
    monkeypatch.chdir(tmp_path)
    assert model_of("r/inner.yaml") == "m"
    assert model_of("inner.yaml") == "m"
    monkeypatch.chdir(tmp_path / "w")
    assert model_of("inner.yaml") == "m"
    (tmp_path / "r" / "sub" / "n").mkdir(parents=True)
    (tmp_path / "r" / "sub" / "deeper.yaml").write_text(inner.replace("model: m", "model: n"))
    assert model_of("sub/deeper.yaml") == "sub/n"


def test_labels_of_many_models_of_one_name_are_given_in_linear_time():
    began = time.monotonic()
    labels = distinct_labels(["x", "x#2", *["x"] * 20_000])
    assert time.monotonic() - began < 1
    assert labels[:4] == ("x", "x#2", "x#3", "x#4")
    assert len(set(labels)) == len(labels)
