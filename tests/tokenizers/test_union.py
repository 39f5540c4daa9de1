"""Unions: every token of every model once, ids dense, the base's unchanged, and one result for one recipe."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightsmith.errors import TokenizerError, UsageError
from weightsmith.tokenizers.target import TargetVocabulary, TokenizerMember, copy_target
from weightsmith.tokenizers.tokenizer_reading import read_tokenizer_folder
from weightsmith.tokenizers.union import union_target
from weightsmith.tokenizers.vocabulary import AddedFlags

from .tokenizers_made_here import added, same_tokens, write_json, write_tokenizer


def member(folder: Path, label: str, rows: int | None = None) -> TokenizerMember:
    vocabulary = read_tokenizer_folder(folder, label)
    assert vocabulary is not None
    return TokenizerMember(vocabulary, folder, rows, label)


def made(
    folder: Path, family: str, corpus: str, *extra: str, rows: int | None = None
) -> TokenizerMember:
    return member(write_tokenizer(folder, family, extra, corpus=corpus), corpus, rows)


def codes(target: TargetVocabulary) -> list[str]:
    return [finding.code for finding in target.findings]


def small(folder: Path, words: list[str], special: list[str]) -> Path:
    """A tokenizer of whole words and some special tokens behind them."""
    model = {
        "type": "WordLevel",
        "vocab": {word: i for i, word in enumerate(words)},
        "unk_token": "<unk>",
    }
    entries = [added(len(words) + index, text) for index, text in enumerate(special)]
    folder.mkdir(parents=True)
    document = {"version": "1.0", "added_tokens": entries, "model": model}
    write_json(folder / "tokenizer.json", document)
    return folder


WORDS = st.lists(st.text("abcd", min_size=1, max_size=3), max_size=8, unique=True)
SPECIALS = st.lists(st.sampled_from(["<|a|>", "<|b|>", "<|c|>", "<|d|>"]), max_size=3, unique=True)
TOKENIZERS = st.lists(st.tuples(WORDS, SPECIALS), min_size=1, max_size=4)


def members_of(root: Path, tokenizers: list[tuple[list[str], list[str]]]) -> list[TokenizerMember]:
    return [
        member(small(root / str(number), ["<unk>", *words], special), str(number))
        for number, (words, special) in enumerate(tokenizers)
    ]


@given(TOKENIZERS)
def test_a_union_has_every_token_once_and_keeps_the_bases_ids(tokenizers):
    with tempfile.TemporaryDirectory() as root:
        members = members_of(Path(root), tokenizers)
        union = union_target(members).vocabulary
        assert set(union.ids) == {text for m in members for text in m.vocabulary.ids}
        assert list(union.ids.values()) == list(range(len(union.ids)))
        base = members[0].vocabulary
        assert list(union.ids.items())[: base.size] == list(base.ids.items())
        special = {t for m in members for t, flags in m.vocabulary.added.items() if flags.special}
        assert {t for t, flags in union.added.items() if flags.special} == special


@given(TOKENIZERS)
def test_new_tokens_come_in_the_order_of_models_then_of_ids_with_added_ones_last(tokenizers):
    with tempfile.TemporaryDirectory() as root:
        members = members_of(Path(root), tokenizers)
        base = members[0].vocabulary
        special = dict.fromkeys(t for _, listed in tokenizers for t in listed if t not in base.ids)
        words = dict.fromkeys(w for listed, _ in tokenizers for w in listed if w not in base.ids)
        assert list(union_target(members).vocabulary.ids)[base.size :] == [*words, *special]


@given(TOKENIZERS)
def test_a_union_with_its_own_parts_is_itself(tokenizers):
    with tempfile.TemporaryDirectory() as root:
        members = members_of(Path(root), tokenizers)
        first = union_target(members)
        whole = TokenizerMember(first.vocabulary, members[0].folder, None, "union")
        again = union_target([whole, *members])
        assert again.vocabulary is first.vocabulary
        assert again.files is None


@pytest.mark.parametrize("family", ["gpt2", "llama2", "bert", "t5", "gpt2-slow"])
def test_nothing_new_leaves_the_base_as_it_is_with_all_its_rows(family, tmp_path):
    base = made(tmp_path / "a", family, "english", rows=512)
    union = union_target([base, made(tmp_path / "b", family, "english")])
    assert union.vocabulary is base.vocabulary
    assert union.files is None
    assert union.rows == 512
    assert union.findings == ()
    assert copy_target(base, source="base", strip=True).files is None


def test_rows_are_padded_to_a_multiple(tmp_path):
    base = made(tmp_path / "a", "gpt2", "english", rows=512)
    other = made(tmp_path / "b", "gpt2", "code")
    union = union_target([base, other], pad_to_multiple_of=64)
    assert union.rows % 64 == 0
    assert 0 <= union.rows - union.vocabulary.size < 64
    assert union_target([base, other]).rows == union.vocabulary.size
    # Padding that is asked for counts from the tokens, not from the donor's own padding.
    assert (
        copy_target(base, source="base", pad_to_multiple_of=8).rows
        == -(-base.vocabulary.size // 8) * 8
    )
    with pytest.raises(UsageError, match="pad_to_multiple_of is 0"):
        union_target([base, other], pad_to_multiple_of=0)


def test_named_tokens_that_are_nowhere_go_last_and_are_found_in_text(tmp_path):
    base = made(tmp_path / "a", "gpt2", "english")
    other = made(tmp_path / "b", "gpt2", "code", "<|b|>")
    union = union_target([base, other], tokens=["<think>", "Ġthe", "<|b|>", "<think>"])
    last = union.vocabulary.size - 1
    assert union.vocabulary.ids["<think>"] == last
    assert union.vocabulary.ids["<|b|>"] == last - 1
    assert union.vocabulary.encode("<think>") == [last]
    copy = copy_target(base, source="base", tokens=["<think>", "Ġthe"])
    assert copy.vocabulary.ids == {**base.vocabulary.ids, "<think>": base.vocabulary.size}


def test_the_first_definition_of_an_added_token_wins_with_a_finding(tmp_path):
    base = made(tmp_path / "a", "gpt2", "english")
    first = made(tmp_path / "b", "gpt2", "english", "<tool>")
    second = made(tmp_path / "c", "gpt2", "code", "<tool>")
    flags = AddedFlags(normalized=False, special=True)
    second.vocabulary.added["<tool>"]
    changed = TokenizerMember(
        _with_flags(second.vocabulary, "<tool>", flags), second.folder, None, "second"
    )
    union = union_target([base, first, changed])
    assert union.vocabulary.added["<tool>"] == AddedFlags(normalized=False, special=False)
    assert "added-token-conflict" in codes(union)
    reverse = union_target([base, changed, first])
    assert reverse.vocabulary.added["<tool>"] == flags


def _with_flags(vocabulary, text, flags):
    from dataclasses import replace

    return replace(vocabulary, added={**vocabulary.added, text: flags})


def test_an_ordinary_token_of_the_base_becomes_special_but_not_merely_added(tmp_path):
    base = member(small(tmp_path / "a", ["<unk>", "<|a|>", "word"], []), "a")
    other = member(small(tmp_path / "b", ["<unk>"], ["<|a|>"]), "b")
    union = union_target([base, other])
    assert union.vocabulary.ids == base.vocabulary.ids
    assert union.vocabulary.added["<|a|>"].special
    assert union.files is not None
    plain = TokenizerMember(
        _with_flags(other.vocabulary, "<|a|>", AddedFlags()), other.folder, None, "plain"
    )
    assert union_target([base, plain]).vocabulary is base.vocabulary


def test_tokens_beyond_the_rows_of_another_model_are_absent_from_it(tmp_path):
    base = made(tmp_path / "a", "qwen", "english")
    other = made(tmp_path / "b", "qwen", "code", "<|far|>", "<|further|>")
    cut = TokenizerMember(other.vocabulary, other.folder, other.vocabulary.size - 1, "b")
    union = union_target([base, cut])
    assert "<|far|>" in union.vocabulary.ids
    assert "<|further|>" not in union.vocabulary.ids
    assert "token-without-row" in codes(union)
    # Another model that has a row for it brings it in.
    assert "<|further|>" in union_target([base, cut, other]).vocabulary.ids


@pytest.mark.parametrize("family", ["gpt2", "bert", "t5", "llama2"])
def test_the_bases_tokens_beyond_its_rows_are_left_out(family, tmp_path):
    whole = made(tmp_path / "a", family, "english", "<|a|>", "plain")
    rows = whole.vocabulary.size - 3
    base = TokenizerMember(whole.vocabulary, whole.folder, rows, "a")
    copy = copy_target(base, source="base", strip=True)
    assert copy.vocabulary.size == copy.rows == rows
    assert copy.vocabulary.ids == {t: i for t, i in whole.vocabulary.ids.items() if i < rows}
    assert codes(copy) == ["token-without-row"]
    assert copy.files is not None
    # A model that is named is taken with all its tokens.
    assert copy_target(base, source="a").vocabulary is whole.vocabulary
    assert same_tokens(union_target([base, base]).vocabulary, copy.vocabulary)


def test_a_token_that_is_put_around_texts_cannot_be_left_out(tmp_path):
    whole = made(tmp_path / "a", "llama3", "english")
    base = TokenizerMember(
        whole.vocabulary, whole.folder, whole.vocabulary.ids["<|begin_of_text|>"], "a"
    )
    with pytest.raises(TokenizerError, match="begin_of_text"):
        copy_target(base, source="base", strip=True)


def test_tokenizers_of_two_kinds_are_joined_by_text_with_a_finding(tmp_path):
    base = made(tmp_path / "a", "gpt2", "english")
    union = union_target([base, made(tmp_path / "b", "llama2", "english")])
    assert {"Ġthe", "▁the", "<0x0A>"} <= union.vocabulary.ids.keys()
    assert "union-of-kinds" in codes(union)


PROGRAM = """
import sys
from pathlib import Path
from weightsmith.tokenizers.tokenizer_reading import read_tokenizer_folder
from weightsmith.tokenizers.target import TokenizerMember
from weightsmith.tokenizers.union import union_target
members = [TokenizerMember(read_tokenizer_folder(Path(f), "x"), Path(f), None, "x") for f in sys.argv[1:]]
for name, content in union_target(members).files.items():
    sys.stdout.buffer.write(name.encode() + content)
"""


def test_the_files_do_not_depend_on_the_hash_seed(tmp_path):
    folders = [
        str(write_tokenizer(tmp_path / corpus, "gpt2", (f"<|{corpus}|>", "plain"), corpus=corpus))
        for corpus in ("english", "code", "scripts")
    ]
    outputs = {
        subprocess.run(
            [sys.executable, "-c", PROGRAM, *folders],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
        ).stdout
        for seed in ("0", "1", "77")
    }
    assert len(outputs) == 1
