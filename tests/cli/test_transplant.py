"""`weightsmith transplant`, and the vocabulary part of `weightsmith plan`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from weightsmith.recipes import Recipe

from ..engine.vocabulary_models import load, make_model, tokenizer_at, weights  # noqa: TID252 - two rooms share it
from .conftest import WIDTHS
from .json_table import check


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("transplant")
    make_model(root / "model", corpus="english", seed=0)
    make_model(root / "donor", corpus="code", extra=("<think>",), seed=1)
    (root / "union.yaml").write_text(
        "weightsmith: 1\nmerge_method: linear\n"
        "models: [{model: model, parameters: {weight: 1}}, {model: donor, parameters: {weight: 1}}]\n"
        "tokenizer: {source: union, missing: {rule: omp, k: 4}}\n"
    )
    return root


def test_a_transplanted_model_speaks_the_donors_tokens(weightsmith, folder, tmp_path):
    out = tmp_path / "out"
    made = weightsmith(
        "transplant", str(folder / "model"), str(folder / "donor"), str(out), "--k", "4"
    )
    assert made.code == 0
    assert made.out.startswith(str(out))
    model, tokenizer = load(out)
    donor = tokenizer_at(folder / "donor")
    assert tokenizer.get_vocab() == donor.get_vocab()
    assert model.config.eos_token_id == tokenizer.eos_token_id
    before, after = weights(folder / "model"), weights(out)
    own = tokenizer_at(folder / "model").get_vocab()
    name = "model.embed_tokens.weight"
    for text, index in donor.get_vocab().items():
        if text in own:
            assert (after[name][index] == before[name][own[text]]).all()
    for other in before:
        if "layers" in other:
            assert (before[other] == after[other]).all()
    assert weightsmith("verify", str(out), "--recompute", "9").code == 0


def test_the_recipe_is_printed_and_can_be_merged(weightsmith, folder, tmp_path):
    model, donor = str(folder / "model"), str(folder / "donor")
    options = ("--rule", "least_squares", "--parameter", "ridge=0.5", "--match", "bytes")
    printed = weightsmith("transplant", model, donor, "nowhere", *options, "--recipe")
    assert printed.code == 0
    recipe = Recipe.load(printed.out)
    section = recipe.to_mapping()["tokenizer"]
    assert section == {
        "source": donor,
        "match": "bytes",
        "missing": {"rule": "least_squares", "ridge": 0.5},
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(printed.out)
    one = weightsmith("merge", str(file), str(tmp_path / "first"))
    two = weightsmith("transplant", model, donor, str(tmp_path / "second"), *options)
    assert (one.code, two.code) == (0, 0), one.err + two.err
    assert one.out.split()[1] == two.out.split()[1]


def test_a_dry_run_and_a_recipe_are_shown_as_json_too(weightsmith, folder, tmp_path):
    arguments = ("transplant", str(folder / "model"), str(folder / "donor"), str(tmp_path / "out"))
    plan = json.loads(weightsmith(*arguments, "--k", "4", "--dry-run", "--json").out)
    assert plan["runnable"]
    recipe = json.loads(weightsmith(*arguments, "--k", "4", "--recipe", "--json").out)["recipe"]
    assert recipe["tokenizer"]["missing"] == {"rule": "omp", "k": 4}
    made = json.loads(weightsmith(*arguments, "--k", "4", "--json", "--quiet").out)
    check("transplant", [dict(made)])
    assert made["out"] == str(tmp_path / "out")


def test_a_plan_with_a_vocabulary_fits_every_terminal(shown_at, folder):
    for columns in WIDTHS:
        shown_at(columns, ["plan", folder / "union.yaml"], ["donor", "model", "omp", "eos_token"])


def test_a_dry_run_measures_and_writes_nothing(weightsmith, folder, tmp_path):
    out = tmp_path / "out"
    shown = weightsmith(
        "transplant",
        str(folder / "model"),
        str(folder / "donor"),
        str(out),
        "--k",
        "4",
        "--dry-run",
    )
    assert shown.code == 0
    assert "Error on held-out tokens" in shown.out
    assert "by omp" in shown.out
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--rule", "magic"), "magic"),
        (("--parameter", "k"), "KEY=VALUE"),
        (("--parameter", "q=1"), "no parameter 'q'"),
        (("--rule", "mean", "--k", "3"), "no parameter 'k'"),
    ],
)
def test_a_wrong_rule_is_told_at_once(weightsmith, folder, options, message, tmp_path):
    result = weightsmith(
        "transplant", str(folder / "model"), str(folder / "donor"), str(tmp_path / "out"), *options
    )
    assert result.code in (2, 4)
    assert message in result.err


def test_the_plan_has_the_vocabulary_in_text_and_json(weightsmith, folder):
    text = weightsmith("plan", str(folder / "union.yaml"))
    assert text.code == 0
    for part in ("Vocabulary: union", "Special tokens", "eos_token", "Chat template: "):
        assert part in text.out
    found = json.loads(weightsmith("plan", str(folder / "union.yaml"), "--json").out)["vocabulary"]
    assert found["source"] == "union"
    assert found["rows"] == found["tokens"]
    table = next(t for t in found["tables"] if t["checkpoint"] == "donor")
    assert table["computed"] == {"omp": table["rows"] - table["in_place"] - table["moved"]}
    assert {row["rule"] for row in found["held_out"]} == {"omp"}
    assert all(row["references"]["zero"]["mean"] == pytest.approx(1) for row in found["held_out"])


def test_a_table_that_is_aligned_can_be_explained(weightsmith, folder):
    name = "model.embed_tokens.weight"
    shown = weightsmith("plan", str(folder / "union.yaml"), "--explain", name)
    assert shown.code == 0
    assert name in shown.out
