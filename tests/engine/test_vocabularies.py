"""Merged folders of models whose tokenizers differ: they load, and say what a merge in memory says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from weightsmith.engine.planning.plan import Plan
from weightsmith.engine.planning.plan_making import make_plan
from weightsmith.engine.running.run import run
from weightsmith.recipes import Recipe

from ..tokenizers.tokenizers_made_here import SAMPLES  # noqa: TID252 - two rooms share it
from .vocabulary_models import (
    borrowed_tables,
    in_memory,
    load,
    logits,
    make_model,
    tokenizer_at,
    weights,
)

# What of each architecture has a row for each token; axis 1 for BART's biases.
TABLES = {
    "llama": ("model.embed_tokens.weight", "lm_head.weight"),
    "qwen2": ("model.embed_tokens.weight",),
    "phi": ("model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"),
    "gpt2": ("transformer.wte.weight",),
    "bert": ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias"),
    "t5": ("shared.weight",),
    "bart": ("model.shared.weight", "final_logits_bias"),
}
CASES = {
    "llama": ("qwen", {}),
    "qwen2": ("qwen", {"tie_word_embeddings": True}),
    "phi": ("gpt2", {}),
    "gpt2": ("gpt2", {}),
    "bert": ("bert", {}),
    "t5": ("t5", {}),
    "bart": ("xlmr", {}),
}


def recipe(models: list[Path], tokenizer: Any, **more: Any) -> Recipe:
    """The mean of some models."""
    entries = [{"model": str(model), "parameters": {"weight": 1}} for model in models]
    given = {"weightsmith": 1, "merge_method": "linear", "models": entries, **more}
    return Recipe.load(given if tokenizer is None else {**given, "tokenizer": tokenizer})


def planned(models: list[Path], tokenizer: Any, **more: Any) -> Plan:
    return make_plan(recipe(models, tokenizer, **more), threads=1)


def merge(out: Path, models: list[Path], tokenizer: Any, **more: Any) -> Path:
    run(planned(models, tokenizer, **more), out)
    return out


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Two models of an architecture with overlapping vocabularies in other orders, made when first asked for."""
    made: dict[str, list[Path]] = {}

    def make(architecture: str) -> list[Path]:
        if architecture not in made:
            root = tmp_path_factory.mktemp(architecture)
            tokenizer, config = CASES[architecture]
            made[architecture] = [
                make_model(
                    root / corpus,
                    architecture,
                    tokenizer,
                    corpus=corpus,
                    extra=extra,
                    seed=seed,
                    **config,
                )
                for seed, (corpus, extra) in enumerate(
                    (("english", ("<|mine|>",)), ("code", ("<think>", "<|theirs|>")))
                )
            ]
        return made[architecture]

    return make


def expected(
    models: list[Path], target: Mapping[str, int], names: tuple[str, ...], **more: Any
) -> dict[str, torch.Tensor]:
    """The mean of the models, tables aligned by mergekit's rule, in plain torch."""
    every = [weights(model) for model in models]
    own = [tokenizer_at(model).get_vocab() for model in models]
    result = {}
    for name in every[0]:
        tensors = [w[name].float() for w in every]
        if name in names:
            axis = 1 if name == "final_logits_bias" else 0
            tables = [t.movedim(axis, 0) for t in tensors]
            tensors = [t.movedim(0, axis) for t in borrowed_tables(tables, own, target, **more)]
        result[name] = torch.stack(tensors).mean(0)
    return result


def agrees(out: Path, reference: Mapping[str, torch.Tensor], scratch: Path) -> None:
    """The folder loads whole, has the reference's tensors, and its forward pass is the reference's."""
    model, tokenizer = load(out)
    found = weights(out)
    assert set(found) == set(reference)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.float(), reference[name], rtol=1e-6, atol=1e-6)
    vocabulary = sorted(tokenizer.get_vocab().values())
    ids = [vocabulary[i] for i in (1, len(vocabulary) // 2, -1, 3)]
    mine, theirs = logits(model, ids), logits(in_memory(out, reference, scratch), ids)
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    assert model.config.get_text_config().vocab_size == model.get_input_embeddings().weight.shape[0]
    for role in ("bos_token", "eos_token", "pad_token"):
        text, index = getattr(tokenizer, role), getattr(model.config, f"{role}_id", None)
        if text is not None and index is not None:
            assert tokenizer.convert_ids_to_tokens(index) == text


def round_trips(out: Path, donor: Path) -> None:
    """Text is cut and put together as by the donor's tokenizer."""
    mine, theirs = tokenizer_at(out), tokenizer_at(donor)
    for text in SAMPLES:
        ids = theirs(text)["input_ids"]
        assert mine(text)["input_ids"] == ids
        assert mine.decode(ids) == theirs.decode(ids)


@pytest.mark.parametrize("architecture", list(CASES))
def test_a_union_is_the_merge_of_aligned_tables(pairs, architecture, tmp_path):
    models = pairs(architecture)
    out = merge(tmp_path / "out", models, {"source": "union"})
    target = tokenizer_at(out).get_vocab()
    own = [tokenizer_at(model).get_vocab() for model in models]
    if architecture != "t5":  # transformers makes up extra ids of T5 by itself
        assert set(target) >= set(own[0]) | set(own[1])
    agrees(out, expected(models, target, TABLES[architecture]), tmp_path / "reference")


@pytest.mark.parametrize("architecture", list(CASES))
def test_the_base_gives_its_vocabulary_to_all(pairs, architecture, tmp_path):
    models = pairs(architecture)
    out = merge(tmp_path / "out", models, {"source": "base"}, base_model=str(models[0]))
    target = tokenizer_at(models[0]).get_vocab()
    reference = expected(models, target, TABLES[architecture], base=0)
    agrees(out, reference, tmp_path / "reference")
    round_trips(out, models[0])
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (out / file).read_bytes() == (models[0] / file).read_bytes()


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert"])
def test_a_named_model_gives_its_vocabulary(pairs, architecture, tmp_path):
    models = pairs(architecture)
    out = merge(tmp_path / "out", models, {"source": str(models[1])})
    target = tokenizer_at(models[1]).get_vocab()
    agrees(out, expected(models, target, TABLES[architecture]), tmp_path / "reference")
    round_trips(out, models[1])
    assert (out / "tokenizer.json").read_bytes() == (models[1] / "tokenizer.json").read_bytes()


def test_padding_is_the_mean_row(pairs, tmp_path):
    models = pairs("llama")
    section = {"source": "union", "pad_to_multiple_of": 64}
    out = merge(tmp_path / "out", models, section)
    rows = load(out)[0].config.vocab_size
    target = tokenizer_at(out).get_vocab()
    assert rows % 64 == 0
    assert rows - len(target) in range(64)
    reference = expected(models, target, TABLES["llama"], rows=rows)
    agrees(out, reference, tmp_path / "reference")


def test_tokens_take_the_rows_that_the_recipe_names(pairs, tmp_path):
    a, b = pairs("llama")
    theirs = tokenizer_at(b).get_vocab()
    tokens = {
        "<think>": {"source": {"kind": "model_token", "model": str(b), "token": "def"}},
        "<new>": {"source": {"kind": "model_token", "model": str(b), "token_id": 7}},
        "<|mine|>": {"source": {"kind": "zero"}, "force": True},
        "e": {"source": str(b), "force": True},
        "<|theirs|>": {},
    }
    out = merge(tmp_path / "out", [a, b], {"source": "union", "tokens": tokens})
    target = tokenizer_at(out).get_vocab()
    reference = expected([a, b], target, TABLES["llama"])
    for name in TABLES["llama"]:
        mine, other = weights(a)[name], weights(b)[name]
        # b has <think> itself, so only a takes the row that is named.
        reference[name][target["<think>"]] = (other[theirs["def"]] + other[theirs["<think>"]]) / 2
        reference[name][target["<new>"]] = other[7]
        reference[name][target["<|mine|>"]] = torch.zeros_like(mine[0])
        reference[name][target["e"]] = other[theirs["e"]]
    agrees(out, reference, tmp_path / "reference")


def test_special_ids_follow_their_tokens(pairs, tmp_path):
    a, b = pairs("llama")
    (b / "generation_config.json").write_text('{"eos_token_id": [2, 5], "top_p": 0.5}')
    (a / "generation_config.json").write_text('{"eos_token_id": 0, "top_p": 0.25}')
    out = merge(tmp_path / "out", [a, b], {"source": str(b)})
    tokenizer = tokenizer_at(out)
    config = json.loads((out / "config.json").read_text())
    generation = json.loads((out / "generation_config.json").read_text())
    assert config["eos_token_id"] == tokenizer.eos_token_id
    assert generation["top_p"] == 0.25
    before = tokenizer_at(a).convert_ids_to_tokens(0)
    assert tokenizer.convert_ids_to_tokens(generation["eos_token_id"]) == before
    (a / "generation_config.json").unlink()
    (b / "generation_config.json").unlink()


RULES = ("zero", "mean", "subtokens", {"rule": "omp", "k": 8}, "least_squares", "procrustes")


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_rule_makes_only_the_rows_that_are_missing(pairs, rule, tmp_path):
    models = pairs("llama")
    out = merge(
        tmp_path / "out", models, {"source": "base", "missing": rule}, base_model=str(models[0])
    )
    model, _ = load(out)
    assert torch.isfinite(logits(model, [1, 5, 9])).all()
    own = [tokenizer_at(m).get_vocab() for m in models]
    for name in TABLES["llama"]:
        a, b, made = (weights(folder)[name] for folder in (*models, out))
        for text, index in own[0].items():
            if text in own[1]:
                mean = (a[index] + b[own[1][text]]) / 2
                torch.testing.assert_close(made[index], mean, rtol=1e-6, atol=1e-6)
        missing = [index for text, index in own[0].items() if text not in own[1]]
        theirs = 2 * made[missing] - a[missing]
        if rule == "zero":
            torch.testing.assert_close(theirs, torch.zeros_like(theirs), atol=1e-5, rtol=0)
        elif rule == "mean":
            row = b.double().mean(0).float().expand_as(theirs)
            torch.testing.assert_close(theirs, row, atol=1e-5, rtol=0)
        else:
            assert theirs.abs().sum(1).min() > 0


def test_a_rotated_space_is_found_again(pairs, tmp_path):
    """Where one table is the other's in another basis, both maps give back the row that was left out."""
    a, _ = pairs("llama")
    rotation, _ = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))
    from safetensors.torch import save_file

    for rule in ("procrustes", {"rule": "least_squares", "ridge": 0, "intercept": False}):
        turned = tmp_path / f"turned{str(rule)[:5]}"
        make_model(turned, "llama", "qwen", corpus="english", size=350)
        name = "model.embed_tokens.weight"
        own, smaller = tokenizer_at(a).get_vocab(), tokenizer_at(turned).get_vocab()
        tensors = weights(turned)
        for text, index in smaller.items():
            if text in own:
                tensors[name][index] = weights(a)[name][own[text]] @ rotation
        save_file(tensors, turned / "model.safetensors", {"format": "pt"})
        section = {"source": str(a), "missing": rule}
        out = tmp_path / f"out{str(rule)[:5]}"
        run(make_plan(Recipe.load(passthrough(turned, section)), threads=1), out)
        made = weights(out)[name]
        missing = [index for text, index in own.items() if text not in smaller]
        assert missing
        torch.testing.assert_close(
            made[missing], weights(a)[name][missing] @ rotation, atol=1e-4, rtol=1e-3
        )


def passthrough(model: Path, section: Any) -> dict[str, Any]:
    return {
        "weightsmith": 1,
        "merge_method": "passthrough",
        "models": [{"model": str(model)}],
        "tokenizer": section,
    }


def test_where_nothing_differs_nothing_is_touched(pairs, tmp_path):
    a, _ = pairs("llama")
    twin = make_model(
        tmp_path / "twin", "llama", "qwen", corpus="english", extra=("<|mine|>",), seed=7
    )
    plain = planned([a, twin], None)
    for source in ("union", "base", str(twin)):
        plan = planned([a, twin], {"source": source})
        assert [(t.output.formula, t.work.action) for t in plan.tensors] == [
            (t.output.formula, t.work.action) for t in plain.tensors
        ]
        assert plan.companions is not None
        assert plain.companions is not None
        assert plan.companions.files == plain.companions.files
        assert plan.companions.config == plain.companions.config
    run(plain, tmp_path / "plain")
    run(planned([a, twin], {"source": "union"}), tmp_path / "union")
    for file in sorted((tmp_path / "plain").iterdir()):
        if not file.name.startswith("weightsmith") and file.name != "README.md":
            assert (tmp_path / "union" / file.name).read_bytes() == file.read_bytes()


def test_computed_rows_do_not_widen_the_result(tmp_path):
    folders = [
        make_model(tmp_path / corpus, corpus=corpus, seed=seed, dtype=torch.bfloat16)
        for seed, corpus in enumerate(("english", "code"))
    ]
    out = merge(tmp_path / "out", folders, {"source": "union", "missing": "mean"})
    assert {tensor.dtype for tensor in weights(out).values()} == {torch.bfloat16}
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


def test_untied_and_tied_models_are_aligned_together(pairs, tmp_path):
    a, _ = pairs("llama")
    tied = make_model(tmp_path / "tied", corpus="code", seed=3, tie_word_embeddings=True)
    out = merge(tmp_path / "out", [a, tied], {"source": "union"}, untie=True)
    own = [tokenizer_at(m).get_vocab() for m in (a, tied)]
    target = tokenizer_at(out).get_vocab()
    embedding = weights(tied)["model.embed_tokens.weight"]
    heads = borrowed_tables([weights(a)["lm_head.weight"], embedding], own, target)
    torch.testing.assert_close(weights(out)["lm_head.weight"], torch.stack(heads).mean(0))
    load(out)


def test_reserved_rows_stay_where_the_vocabulary_does(tmp_path):
    """Rows behind the last token, as in Qwen: the same number, unchanged."""
    folders = [
        make_model(tmp_path / corpus, corpus=corpus, seed=seed, more_rows=9)
        for seed, corpus in enumerate(("english", "code"))
    ]
    out = merge(tmp_path / "out", folders, {"source": "base"}, base_model=str(folders[0]))
    name = "model.embed_tokens.weight"
    a, made = weights(folders[0])[name], weights(out)[name]
    assert made.shape == a.shape
    count = len(tokenizer_at(folders[0]).get_vocab())
    b = borrowed_tables(
        [weights(folders[1])[name]],
        [tokenizer_at(folders[1]).get_vocab()],
        tokenizer_at(folders[0]).get_vocab(),
    )
    assert b[0].shape[0] == count
    load(out)


def test_families_are_matched_by_what_tokens_stand_for(tmp_path):
    """Ġthe and ▁the are one token in a native recipe; by their text they are two."""
    gpt = make_model(tmp_path / "gpt", "llama", "gpt2", seed=0)
    llama = make_model(tmp_path / "llama", "llama", "llama2", seed=1)
    name = "model.embed_tokens.weight"
    rows = {}
    for match in ("bytes", "exact"):
        section = {"source": str(gpt), "missing": "zero", "match": match}
        out = merge(tmp_path / match, [gpt, llama], section)
        ids = tokenizer_at(gpt).get_vocab()
        rows[match] = 2 * weights(out)[name][ids["Ġthe"]] - weights(gpt)[name][ids["Ġthe"]]
    theirs = weights(llama)[name][tokenizer_at(llama).get_vocab()["▁the"]]
    torch.testing.assert_close(rows["bytes"], theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rows["exact"], torch.zeros_like(theirs), rtol=0, atol=1e-5)
