"""Sentencepiece files trained by sentencepiece itself: the same pieces for every text, with each family's ids."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from weightsmith.errors import TokenizerError
from weightsmith.tokenizers.tokenizer_reading import read_tokenizer_folder
from weightsmith.tokenizers.vocabulary import TokenKind, Vocabulary

from .tokenizers_made_here import CORPORA, SAMPLES, sentencepiece_model, write_json

LINES = [line for text in CORPORA["mixed"] for line in text.splitlines()] * 3
# Sentencepiece cuts the text of control tokens apart, the tokenizers library finds the tokens.
TEXTS = [text for text in (*SAMPLES, *LINES) if "<s>" not in text]


def trained(kind: str, size: int, **options: Any) -> bytes:
    sentencepiece = pytest.importorskip("sentencepiece")
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=written,
        model_type=kind,
        vocab_size=size,
        hard_vocab_limit=False,
        minloglevel=2,
        num_threads=1,
        character_coverage=0.98,
        **options,
    )
    return written.getvalue()


def read(folder: Path, model: bytes, name: str | None) -> Vocabulary:
    (folder / "tokenizer.model").write_bytes(model)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": name} if name else {})
    vocabulary = read_tokenizer_folder(folder)
    assert vocabulary is not None
    return vocabulary


LLAMA = {
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
}
GEMMA = {**LLAMA, "add_dummy_prefix": False, "user_defined_symbols": ["<turn>", "▁▁", "▁▁▁▁", "\n"]}


@pytest.mark.parametrize(
    ("kind", "size", "options", "name"),
    [
        ("unigram", 330, {}, None),
        ("unigram", 330, {}, "T5Tokenizer"),
        ("unigram", 330, {"split_by_whitespace": False}, None),
        ("unigram", 560, {"byte_fallback": True, "user_defined_symbols": ["<x>"]}, None),
        ("bpe", 330, {}, None),
        ("bpe", 560, LLAMA, "LlamaTokenizer"),
        ("bpe", 560, GEMMA, "GemmaTokenizer"),
    ],
)
def test_every_text_is_cut_as_sentencepiece_cuts_it(kind, size, options, name, tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    model = trained(kind, size, **options)
    expected = sentencepiece.SentencePieceProcessor(model_proto=model)
    vocabulary = read(tmp_path, model, name)
    for text in TEXTS:
        assert vocabulary.encode(text) == expected.encode(text)
    for index in range(expected.get_piece_size()):
        assert vocabulary.texts[index] == expected.id_to_piece(index)
    assert vocabulary.size == expected.get_piece_size() + (100 if name == "T5Tokenizer" else 0)


def test_xlm_roberta_has_fairseqs_ids(tmp_path):
    sentencepiece = pytest.importorskip("sentencepiece")
    model = trained("unigram", 330)
    expected = sentencepiece.SentencePieceProcessor(model_proto=model)
    vocabulary = read(tmp_path, model, "XLMRobertaTokenizer")
    assert [vocabulary.texts[index] for index in range(4)] == ["<s>", "<pad>", "</s>", "<unk>"]
    assert vocabulary.texts[vocabulary.size - 1] == "<mask>"
    for text in TEXTS:
        offset = [3 if index == 0 else index + 1 for index in expected.encode(text)]
        assert vocabulary.encode(text) == offset


def test_t5s_sentinels_count_down_behind_the_pieces(tmp_path):
    model = trained("unigram", 330)
    plain = read(tmp_path, model, None)
    write_json(
        tmp_path / "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer", "extra_ids": 3}
    )
    vocabulary = read_tokenizer_folder(tmp_path)
    assert vocabulary is not None
    tail = [vocabulary.texts[plain.size + number] for number in range(3)]
    assert tail == ["<extra_id_2>", "<extra_id_1>", "<extra_id_0>"]
    assert vocabulary.kind("<extra_id_0>") is TokenKind.CONTROL


def test_an_unused_piece_is_never_produced(tmp_path):
    pieces = [("<unk>", 0.0, 2), ("▁", -2.0, 1), ("a", -2.0, 1), ("b", -2.0, 1), ("ab", -1.0, 5)]
    vocabulary = read(tmp_path, sentencepiece_model(pieces, kind="unigram", ids={"unk": 0}), None)
    assert [vocabulary.texts[index] for index in vocabulary.encode("ab")] == ["▁", "a", "b"]
    assert vocabulary.kind("ab") is TokenKind.UNUSED


def test_a_piece_that_the_configuration_renames_has_its_new_name(tmp_path):
    pieces = [("<unk>", 0.0, 2), ("<extra_0>", 0.0, 3), ("▁a", -2.0, 1)]
    model = sentencepiece_model(pieces, kind="unigram", ids={"unk": 0})
    (tmp_path / "tokenizer.model").write_bytes(model)
    declared = {"1": {"content": "<|tool|>", "special": True}}
    write_json(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": declared})
    vocabulary = read_tokenizer_folder(tmp_path)
    assert vocabulary is not None
    assert vocabulary.ids == {"<unk>": 0, "<|tool|>": 1, "▁a": 2}
    assert vocabulary.encode("a<|tool|>") == [2, 1]


@pytest.mark.parametrize(
    ("pieces", "kind", "words"),
    [
        ([("<unk>", 0.0, 2), ("a", 0.0, 1), ("a", 0.0, 1)], "unigram", "twice"),
        ([("<unk>", 0.0, 2), ("a", float("nan"), 1)], "unigram", "finite"),
        ([("a", 0.0, 9)], "bpe", "type"),
        ([], "unigram", "no pieces"),
    ],
)
def test_a_damaged_model_is_refused(pieces, kind, words, tmp_path):
    with pytest.raises(TokenizerError, match=words):
        read(tmp_path, sentencepiece_model(pieces, kind=kind, ids={"unk": 0}) or b"\n", None)
