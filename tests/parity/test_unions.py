"""Unions of tokenizers beside mergekit's: the same tokens, the same ids for all that mergekit defines.

mergekit numbers the ordinary new tokens in the order of a hash map; ours follow models, then ids.
"""

from __future__ import annotations

import importlib
import json
import warnings
from pathlib import Path

import pytest

from weightsmith.tokenizers.target import TokenizerMember, copy_target
from weightsmith.tokenizers.tokenizer_reading import read_tokenizer_folder
from weightsmith.tokenizers.union import union_target

from ..tokenizers.tokenizers_made_here import write_json, write_tokenizer  # noqa: TID252 - two rooms share it

pytestmark = [pytest.mark.parity, pytest.mark.usefixtures("peer")]


def model(root: Path, family: str, corpus: str, *extra: str, short: int = 0) -> TokenizerMember:
    """A folder whose config has `short` rows fewer than its tokenizer has tokens."""
    folder = write_tokenizer(root / corpus, family, extra, corpus=corpus)
    vocabulary = read_tokenizer_folder(folder)
    assert vocabulary is not None
    rows = vocabulary.size - short
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": rows,
    }
    write_json(folder / "config.json", config)
    return TokenizerMember(vocabulary, folder, rows, corpus)


def theirs(members: list[TokenizerMember], source: str, tokens: list[str]) -> dict[str, int]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        build = importlib.import_module("mergekit.tokenizer.build")
        reference = importlib.import_module("mergekit.common").ModelReference
        models = [reference.parse(str(member.folder)) for member in members]
        result = build.build_tokenizer(models[0], models, source, False, add_tokens=tokens)
    return dict(result.tokenizer.get_vocab())


@pytest.mark.parametrize("family", ["gpt2", "qwen", "llama3", "llama2"])
def test_a_union_has_mergekits_tokens_and_the_ids_that_it_defines(family, tmp_path):
    members = [
        model(tmp_path, family, "english", "<|mine|>", short=1),
        model(tmp_path, family, "code", "<|theirs|>", "plain", "<|far|>", short=1),
    ]
    tokens = ["<think>", "<|theirs|>"]
    ours = union_target(members, tokens=tokens).vocabulary
    expected = theirs(members, "union", tokens)
    assert set(ours.ids) == set(expected)
    assert sorted(ours.ids.values()) == sorted(expected.values())
    defined = [t for t in ours.ids if t in members[0].vocabulary.ids or t in ours.added]
    assert {t: ours.ids[t] for t in defined} == {t: expected[t] for t in defined}


@pytest.mark.parametrize("family", ["gpt2", "qwen", "llama3", "llama2"])
def test_the_base_is_stripped_as_mergekit_strips_it(family, tmp_path):
    base = model(tmp_path, family, "english", "<|mine|>", "plain", short=1)
    copy = copy_target(base, source="base", tokens=["<think>"], strip=True)
    assert dict(copy.vocabulary.ids) == theirs([base], "base", ["<think>"])
    assert json.loads((base.folder / "config.json").read_text())["vocab_size"] == copy.rows - 1
