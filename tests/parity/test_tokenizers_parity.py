"""Merges with a tokenizer section beside mergekit's: the same rows for the same tokens, where mergekit is right."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ..engine.vocabulary_models import make_model, tokenizer_at, weights  # noqa: TID252 - two rooms share it

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("peer")]

TABLES = {
    "llama": ("model.embed_tokens.weight", "lm_head.weight"),
    "qwen2": ("model.embed_tokens.weight", "lm_head.weight"),
    "gpt2": ("transformer.wte.weight",),
    "phi": ("model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"),
}
FAMILY = {"llama": "llama3", "qwen2": "qwen", "gpt2": "gpt2", "phi": "gpt2"}


@pytest.fixture(scope="module")
def triples(tmp_path_factory):
    """Three models of an architecture with overlapping vocabularies, made when first asked for."""
    made: dict[str, list[Path]] = {}

    def make(architecture: str) -> list[Path]:
        if architecture not in made:
            root = tmp_path_factory.mktemp(architecture)
            untied = {} if architecture == "gpt2" else {"tie_word_embeddings": False}
            made[architecture] = [
                make_model(
                    root / f"m{seed}",
                    architecture,
                    FAMILY[architecture],
                    corpus=corpus,
                    extra=extra,
                    seed=seed,
                    **untied,
                )
                for seed, (corpus, extra) in enumerate(
                    (
                        ("english", ("<|mine|>",)),
                        ("code", ("<think>", "<|theirs|>")),
                        ("scripts", ("<|theirs|>",)),
                    )
                )
            ]
        return made[architecture]

    return make


def both(
    peer: Any, folder: Path, models: list[Path], section: dict[str, Any], **more: Any
) -> tuple[Path, Path]:
    """Our folder and mergekit's, of the same recipe with unequal weights."""
    recipe: dict[str, Any] = {
        "merge_method": "linear",
        "models": [
            {"model": str(model), "parameters": {"weight": number + 1}}
            for number, model in enumerate(models)
        ],
        "dtype": "float32",
        **section,
        **more,
    }
    text = yaml.safe_dump(recipe)
    (folder / "recipe.yaml").write_text(text)
    options = peer.options.MergeOptions(quiet=True, write_model_card=False)
    peer.merge.run_merge(
        peer.config.MergeConfiguration.model_validate(recipe), str(folder / "theirs"), options
    )
    command = [
        sys.executable,
        "-m",
        "weightsmith",
        "merge",
        folder / "recipe.yaml",
        folder / "ours",
    ]
    subprocess.run([*command, "--backend", "torch"], check=True, capture_output=True)
    return folder / "ours", folder / "theirs"


def same_rows(ours: Path, theirs: Path, names: tuple[str, ...]) -> None:
    """Every token has the same row on both sides, wherever it stands; all else is equal."""
    mine, other = weights(ours), weights(theirs)
    own, peers = tokenizer_at(ours).get_vocab(), tokenizer_at(theirs).get_vocab()
    assert set(own) == set(peers)
    order = list(own)
    a = torch.tensor([own[text] for text in order])
    b = torch.tensor([peers[text] for text in order])
    assert set(mine) == set(other)
    for name, tensor in mine.items():
        assert tensor.shape == other[name].shape, name
        if name in names:
            torch.testing.assert_close(tensor[a], other[name][b], rtol=1e-5, atol=1e-6)
            used = len(order)
            torch.testing.assert_close(tensor[used:], other[name][used:], rtol=1e-5, atol=1e-6)
        else:
            torch.testing.assert_close(tensor, other[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("architecture", list(TABLES))
@pytest.mark.parametrize("source", ["union", "base", "m1"])
def test_every_token_has_mergekits_row(peer, triples, architecture, source, tmp_path):
    models = triples(architecture)
    wanted = source if source != "m1" else str(models[1])
    section = {"tokenizer_source": wanted}
    more = {"base_model": str(models[0])} if source != "m1" else {}
    # Their `linear` knows a base only where it is one of the models.
    ours, theirs = both(peer, tmp_path, models, section, **more)
    same_rows(ours, theirs, TABLES[architecture])


def test_tokens_and_force_are_mergekits(peer, triples, tmp_path):
    models = triples("llama")
    a, b, c = map(str, models)
    tokens = {
        "<think>": {"source": {"kind": "model_token", "model": a, "token": "Ġthe"}},
        "<new>": {"source": {"kind": "model_token", "model": b, "token_id": 7}},
        "<|mine|>": {"source": {"kind": "zero"}, "force": True},
        "e": {"source": c, "force": True},
        "<|theirs|>": {"source": b, "force": True},
    }
    section = {"tokenizer": {"source": "union", "tokens": tokens}}
    ours, theirs = both(peer, tmp_path, models, section, base_model=a)
    same_rows(ours, theirs, TABLES["llama"])


@pytest.mark.parametrize("source", ["union", "base"])
def test_padding_is_mergekits(peer, triples, source, tmp_path):
    models = triples("phi")
    section = {"tokenizer": {"source": source, "pad_to_multiple_of": 64}}
    ours, theirs = both(peer, tmp_path, models, section, base_model=str(models[0]))
    assert weights(ours)["lm_head.weight"].shape[0] % 64 == 0
    same_rows(ours, theirs, TABLES["phi"])


def test_task_vectors_are_taken_between_the_same_rows(peer, triples, tmp_path):
    models = triples("qwen2")
    more = {"base_model": str(models[0]), "merge_method": "task_arithmetic"}
    ours, theirs = both(peer, tmp_path, models[1:], {"tokenizer_source": "union"}, **more)
    same_rows(ours, theirs, TABLES["qwen2"])


def test_tokens_beyond_the_rows_crash_mergekit_and_not_us(peer, tmp_path):
    """mergekit leaves out the entry and looks it up later; here the token counts as absent from that model."""
    models = [
        make_model(tmp_path / "a", "llama", "llama3", corpus="english", extra=("<|x|>",), seed=0),
        make_model(
            tmp_path / "b",
            "llama",
            "llama3",
            corpus="english",
            extra=("<|x|>",),
            seed=1,
            more_rows=-1,
        ),
    ]
    more = {"base_model": str(models[0])}
    with pytest.raises(Exception, match=r".*"):
        both(peer, tmp_path, models, {"tokenizer_source": "union"}, **more)
    command = [
        sys.executable,
        "-m",
        "weightsmith",
        "merge",
        tmp_path / "recipe.yaml",
        tmp_path / "ours",
    ]
    subprocess.run([*command, "--backend", "torch"], check=True, capture_output=True)
    row = tokenizer_at(models[0]).get_vocab()["<|x|>"]
    name = "model.embed_tokens.weight"
    torch.testing.assert_close(weights(tmp_path / "ours")[name][row], weights(models[0])[name][row])
