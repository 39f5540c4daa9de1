"""Reading: ids, kinds and cuts as the tokenizers' own libraries have them, and clear errors for damaged files."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tokenizers import Tokenizer
from weightsmith.checkpoints import open_checkpoint
from weightsmith.errors import TokenizerError
from weightsmith.tokenizers.tokenizer_reading import read_tokenizer_folder, read_vocabulary
from weightsmith.tokenizers.vocabulary import AddedFlags, TokenKind, Vocabulary

from .tokenizers_made_here import FAMILIES, FAST, SAMPLES, SLOW, write_json, write_tokenizer

EXTRA = ("<|new|>", "plainadded")


def read(folder: Path) -> Vocabulary:
    vocabulary = read_tokenizer_folder(folder)
    assert vocabulary is not None
    return vocabulary


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_and_special_tokens_are_those_of_transformers(family, tmp_path):
    transformers = pytest.importorskip("transformers")
    if family in ("t5-slow", "xlmr-slow", "llama2-slow"):
        pytest.importorskip("sentencepiece")
    write_tokenizer(tmp_path, family, EXTRA)
    expected = transformers.AutoTokenizer.from_pretrained(tmp_path)
    vocabulary = read(tmp_path)
    assert dict(vocabulary.ids) == expected.get_vocab()
    assert vocabulary.size == max(expected.get_vocab().values()) + 1
    for role, index in vocabulary.special_ids.items():
        assert getattr(expected, f"{role}_id") == index
    special = {text for text, flags in vocabulary.added.items() if flags.special}
    assert special >= set(expected.all_special_tokens)


@pytest.mark.parametrize("family", FAST)
def test_a_fast_tokenizer_cuts_text_as_its_file_does(family, tmp_path):
    write_tokenizer(tmp_path, family, EXTRA)
    expected = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    vocabulary = read(tmp_path)
    for text in (*SAMPLES, "a plainadded <|new|> b"):
        ids = expected.encode(text, add_special_tokens=False).ids
        assert vocabulary.encode(text) == ids
        assert vocabulary.decode(ids) == expected.decode(ids, skip_special_tokens=False)
    assert vocabulary.encode_many(SAMPLES) == [vocabulary.encode(text) for text in SAMPLES]


@pytest.mark.parametrize("family", ["gpt2", "bert", "t5", "xlmr", "llama2"])
def test_the_slow_form_is_the_same_tokenizer_as_the_fast_one(family, tmp_path):
    fast = read(write_tokenizer(tmp_path / "fast", family, EXTRA))
    slow = read(write_tokenizer(tmp_path / "slow", f"{family}-slow", EXTRA))
    assert dict(slow.ids) == dict(fast.ids)
    assert slow.special == fast.special
    # T5's and XLM-R's fast forms cut at line ends, which the sentencepiece files here keep.
    texts = [text for text in SAMPLES if family not in ("t5", "xlmr") or "\n" not in text]
    for text in texts:
        assert slow.encode(text) == fast.encode(text)


@pytest.mark.parametrize("family", ["gpt2-slow", "bert-slow", "llama2-slow"])
def test_a_slow_tokenizer_cuts_text_as_transformers_does(family, tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("sentencepiece")
    write_tokenizer(tmp_path, family, EXTRA)
    expected = transformers.AutoTokenizer.from_pretrained(tmp_path)
    vocabulary = read(tmp_path)
    # transformers 5 puts no ▁ before a text that begins with a space or follows a special token.
    texts = [t for t in SAMPLES if "llama" not in family or not (t.startswith(" ") or "<s>" in t)]
    for text in texts:
        assert vocabulary.encode(text) == expected(text, add_special_tokens=False).input_ids


def test_every_kind_of_token_is_recognised(tmp_path):
    vocabulary = read(write_tokenizer(tmp_path, "llama2", EXTRA))
    kinds = {token.text: token.kind for token in vocabulary.tokens}
    assert kinds["<unk>"] is TokenKind.UNKNOWN
    assert kinds["<s>"] is TokenKind.CONTROL
    assert kinds["<0x0A>"] is TokenKind.BYTE
    assert kinds["plainadded"] is TokenKind.ADDED
    assert kinds["▁the"] is TokenKind.NORMAL
    assert [token.id for token in vocabulary.tokens] == list(range(vocabulary.size))
    assert vocabulary.tokens[-1].flags == AddedFlags(normalized=False, special=False)


@pytest.mark.parametrize(
    ("family", "model", "text"),
    [
        ("gpt2", "ByteLevelBPE", "Ġthe"),
        ("qwen", "ByteLevelBPE", "Ġthe"),
        ("llama2", "BPE", "▁the"),
        ("bert", "WordPiece", "the"),
        ("t5", "Unigram", "▁the"),
    ],
)
def test_one_meaning_is_one_key_in_every_family(family, model, text, tmp_path):
    vocabulary = read(write_tokenizer(tmp_path, family))
    assert vocabulary.model == model
    assert vocabulary.key(vocabulary.token(text)) == (TokenKind.NORMAL, b" the")
    assert vocabulary.keys[TokenKind.NORMAL, b" the"] == vocabulary.ids[text]


def test_keys_are_the_bytes_that_decoding_gives(tmp_path):
    vocabulary = read(write_tokenizer(tmp_path, "gpt2"))
    for token in vocabulary.tokens[:-1]:
        kind, meaning = vocabulary.key(token)
        assert kind is TokenKind.NORMAL
        assert meaning.decode("utf-8", errors="replace") == vocabulary.decode([token.id])


def test_keys_prefer_a_token_of_text_to_a_byte_and_unknown_tokens_are_one(tmp_path):
    llama = read(write_tokenizer(tmp_path / "a", "llama2"))
    t5 = read(write_tokenizer(tmp_path / "b", "t5"))
    assert llama.keys[TokenKind.NORMAL, b"e"] == llama.ids["e"] != llama.ids["<0x65>"]
    assert llama.keys[TokenKind.NORMAL, b"\xff"] == llama.ids["<0xFF>"]
    assert llama.keys[TokenKind.UNKNOWN, b""] == 0
    assert t5.keys[TokenKind.UNKNOWN, b""] == 2
    assert llama.keys[TokenKind.CONTROL, b"</s>"] == 2
    assert t5.keys[TokenKind.CONTROL, b"</s>"] == 1


def test_a_folder_without_a_tokenizer_and_a_single_file_have_none(tmp_path):
    import numpy as np
    from safetensors.numpy import save_file

    save_file({"x": np.ones(2, np.float32)}, tmp_path / "model.safetensors")
    assert read_vocabulary(open_checkpoint(tmp_path)) is None
    assert read_vocabulary(open_checkpoint(tmp_path / "model.safetensors")) is None
    write_tokenizer(tmp_path, "gpt2")
    vocabulary = read_vocabulary(open_checkpoint(tmp_path))
    assert vocabulary is not None
    assert vocabulary.identity == repr(str(tmp_path))


def test_chat_templates_come_from_files_before_the_configuration(tmp_path):
    write_tokenizer(tmp_path, "qwen")
    assert "im_start" in read(tmp_path).chat_templates["default"]
    named = [{"name": "default", "template": "A"}, {"name": "tool_use", "template": "B"}]
    edit(tmp_path / "tokenizer_config.json", lambda config: config.update(chat_template=named))
    assert read(tmp_path).chat_templates == {"default": "A", "tool_use": "B"}
    (tmp_path / "chat_template.jinja").write_text("C")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text("D")
    assert read(tmp_path).chat_templates == {"default": "C", "rag": "D"}


def test_a_special_token_that_is_nowhere_becomes_a_new_one_as_in_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    write_tokenizer(tmp_path, "llama3")
    edit(tmp_path / "tokenizer_config.json", lambda config: config.update(pad_token="[PAD]"))
    vocabulary = read(tmp_path)
    expected = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert vocabulary.special_ids["pad_token"] == expected.pad_token_id == 600
    assert dict(vocabulary.ids) == expected.get_vocab()
    assert [finding.code for finding in vocabulary.findings] == ["special-token-absent"]


def test_tokens_that_only_the_configuration_declares_are_there(tmp_path):
    write_tokenizer(tmp_path, "gpt2", EXTRA)
    edit(tmp_path / "tokenizer.json", lambda document: document["added_tokens"].pop())
    vocabulary = read(tmp_path)
    assert vocabulary.ids["plainadded"] == 601
    assert 601 in vocabulary.encode("some plainadded text")


def test_tekken_gives_mistrals_ids_and_the_cuts_of_its_ranks(tmp_path):
    words = [bytes([byte]) for byte in range(256)] + [b"th", b"he", b"the", b" the"]
    entries = [
        {"rank": rank, "token_bytes": base64.b64encode(word).decode(), "token_str": None}
        for rank, word in enumerate(words)
    ]
    special = [
        {"rank": rank, "token_str": text, "is_control": True}
        for rank, text in enumerate(["<unk>", "<s>", "</s>", "[INST]"])
    ]
    config = {
        "pattern": r" ?\p{L}+|[^\p{L}]",
        "num_vocab_tokens": 260,
        "default_vocab_size": 266,
        "default_num_special_tokens": 6,
    }
    write_json(
        tmp_path / "tekken.json", {"config": config, "vocab": entries, "special_tokens": special}
    )
    vocabulary = read(tmp_path)
    assert vocabulary.size == 266
    assert vocabulary.ids["[INST]"] == 3
    assert vocabulary.ids["<SPECIAL_5>"] == 5
    assert vocabulary.encode("the[INST] the") == [6 + 258, 3, 6 + 259]
    assert vocabulary.decode([6 + 258, 6 + 0xC3, 6 + 0xA9]) == "theé"


def edit(file: Path, change: Callable[[Any], object]) -> None:
    document = json.loads(file.read_text(encoding="utf-8"))
    change(document)
    write_json(file, document)


def _two_texts(document: Any) -> None:
    document["added_tokens"][0]["content"] = "<|other|>"


def _no_such_merge(document: Any) -> None:
    document["model"]["merges"].append(["Ġthe", "nowhere"])


def _doubled_id(document: Any) -> None:
    document["model"]["vocab"]["another"] = 5


def _text_id(document: Any) -> None:
    document["model"]["vocab"]["another"] = "5"


def _unknown_model(document: Any) -> None:
    document["model"]["type"] = "Quantum"


def _gap(document: Any) -> None:
    document["added_tokens"].append({**document["added_tokens"][0], "id": 700, "content": "<far>"})


def _bad_charsmap(document: Any) -> None:
    document["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}


def _no_flag(document: Any) -> None:
    document["added_tokens"][0]["special"] = "yes"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_two_texts, ["599", "'<|endoftext|>'", "'<|other|>'"]),
        (_no_such_merge, ["tokenizers library", "fetch"]),
        (_doubled_id, ["the id 5", "'another'"]),
        (_text_id, ["'another'", "'5'"]),
        (_unknown_model, ["'Quantum'", "BPE"]),
        (_gap, ["'<far>'", "700", "600"]),
        (_bad_charsmap, ["tokenizers library"]),
        (_no_flag, ["special", "'yes'"]),
    ],
)
def test_a_contradictory_tokenizer_is_refused_in_one_sentence(change, words, tmp_path):
    write_tokenizer(tmp_path, "gpt2")
    edit(tmp_path / "tokenizer.json", change)
    with pytest.raises(TokenizerError) as caught:
        read(tmp_path)
    message = str(caught.value)
    assert all(word in message for word in words)
    assert message.endswith(".")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("family", "name", "content", "words"),
    [
        ("gpt2", "tokenizer.json", b'{"model": ', ["tokenizer.json", "not JSON"]),
        ("gpt2", "tokenizer.json", b"\xff\xfe", ["not UTF-8"]),
        ("gpt2", "tokenizer.json", b"[]", ["JSON object"]),
        ("gpt2", "tokenizer.json", b'{"model": {"type": "BPE", "vocab": []}}', ["vocabulary"]),
        (
            "gpt2",
            "tokenizer_config.json",
            b'{"added_tokens_decoder": {}, "eos_token": 5}',
            ["eos_token", "'5'"],
        ),
        ("gpt2", "tokenizer_config.json", b'{"added_tokens_decoder": {"x": {}}}', ["'x'"]),
        ("gpt2", "tokenizer_config.json", b'{"chat_template": 3}', ["chat_template"]),
        ("gpt2-slow", "merges.txt", b"a b c\n", ["line 1"]),
        ("gpt2-slow", "merges.txt", b"#version\nqq zz\n", ["line 2", "'qq'"]),
        ("gpt2-slow", "vocab.json", b'{"a": -1}', ["'a'", "'-1'"]),
        (
            "gpt2-slow",
            "tokenizer_config.json",
            b'{"tokenizer_class": "CLIPTokenizer"}',
            ["CLIPTokenizer"],
        ),
        ("bert-slow", "vocab.txt", b"[UNK]\n[CLS]\n[UNK]\n", ["'[UNK]'", "1 and 3"]),
        ("bert-slow", "tokenizer_config.json", b'{"do_lower_case": 1}', ["do_lower_case"]),
        ("t5-slow", "spiece.model", b"\n\xff\xff", ["sentencepiece"]),
        ("t5-slow", "spiece.model", b"\n\x03\n\x01", ["sentencepiece"]),
        (
            "t5-slow",
            "tokenizer_config.json",
            b'{"tokenizer_class": "MarianTokenizer"}',
            ["MarianTokenizer"],
        ),
        ("llama2-slow", "tokenizer.model", b"IQ== 0\n", ["tokenizer.json"]),
    ],
)
def test_a_damaged_file_is_refused_in_one_sentence(family, name, content, words, tmp_path):
    write_tokenizer(tmp_path, family)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError) as caught:
        read(tmp_path)
    message = str(caught.value)
    assert all(word in message for word in words)
    assert message.endswith(".")
    assert "\n" not in message


@pytest.mark.parametrize("family", SLOW)
def test_a_cut_off_slow_file_is_refused_or_still_valid_but_never_a_crash(family, tmp_path):
    write_tokenizer(tmp_path, family)
    names = (
        "spiece.model",
        "sentencepiece.bpe.model",
        "tokenizer.model",
        "vocab.json",
        "vocab.txt",
    )
    file = next(tmp_path / name for name in names if (tmp_path / name).exists())
    whole = file.read_bytes()
    refusals = 0
    for cut in range(1, len(whole), max(1, len(whole) // 23)):
        file.write_bytes(whole[:cut])
        message = refusal(tmp_path)
        assert message is None or message.endswith(".")
        refusals += message is not None
    assert refusals


def refusal(folder: Path) -> str | None:
    try:
        read(folder)
    except TokenizerError as problem:
        return str(problem)
    return None


def test_what_cuts_off_or_randomizes_text_in_the_file_does_not_do_so_here(tmp_path):
    plain = read(write_tokenizer(tmp_path / "a", "gpt2"))
    write_tokenizer(tmp_path / "b", "gpt2")

    def limit(document: Any) -> None:
        document["truncation"] = {
            "direction": "Right",
            "max_length": 2,
            "strategy": "LongestFirst",
            "stride": 0,
        }
        document["model"]["dropout"] = 0.9

    edit(tmp_path / "b" / "tokenizer.json", limit)
    limited = read(tmp_path / "b")
    for text in SAMPLES:
        assert limited.encode(text) == plain.encode(text)


@pytest.mark.parametrize(
    ("family", "model_type", "name"),
    [("xlmr", "xlm-roberta", "sentencepiece.bpe.model"), ("t5", "t5", "spiece.model")],
)
def test_the_model_type_tells_how_pieces_are_numbered_where_no_class_is_named(
    family, model_type, name, tmp_path
):
    fast = read(write_tokenizer(tmp_path / "fast", family))
    folder = write_tokenizer(tmp_path / "slow", f"{family}-slow")
    edit(folder / "tokenizer_config.json", lambda config: config.pop("tokenizer_class"))
    with pytest.raises(TokenizerError, match=f"{name}.*names none"):
        read(folder)
    write_json(folder / "config.json", {"model_type": model_type})
    assert dict(read(folder).ids) == dict(fast.ids)
    write_json(folder / "config.json", {"model_type": "marian"})
    with pytest.raises(TokenizerError, match="marian"):
        read(folder)


def test_a_vocabulary_with_word_endings_is_not_taken_for_gpt2s(tmp_path):
    write_tokenizer(tmp_path, "gpt2-slow")
    edit(tmp_path / "tokenizer_config.json", lambda config: config.pop("tokenizer_class"))
    assert read(tmp_path).model == "ByteLevelBPE"
    edit(tmp_path / "vocab.json", lambda vocab: vocab.update({"the</w>": len(vocab)}))
    with pytest.raises(TokenizerError, match="no tokenizer_class"):
        read(tmp_path)
