"""Slow tokenizers in plain files: vocab.json with merges.txt, and vocab.txt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from weightsmith.errors import TokenizerError
from weightsmith.tensors import shown
from weightsmith.tokenizers.documents import (
    QWEN_PATTERN,
    Part,
    bpe_model,
    byte_level,
    byte_level_after,
    template,
    tokenizer_document,
)
from weightsmith.tokenizers.tokenizer_settings import (
    TokenizerSettings,
    is_id,
    read_object,
    read_text,
    text_of,
)
from weightsmith.tokenizers.vocabulary import byte_level_alphabet

# Classes whose slow form is GPT-2's byte-level BPE; the value says whether text is wrapped in bos/cls and eos/sep.
_GPT2_LIKE = {
    None: False,
    "GPT2Tokenizer": False,
    "CodeGenTokenizer": False,
    "GPTNeoXTokenizer": False,
    "TokenizersBackend": False,
    "RobertaTokenizer": True,
    "BartTokenizer": True,
    "LongformerTokenizer": True,
    "LEDTokenizer": True,
}
_BERT_LIKE = frozenset(
    """BertTokenizer DistilBertTokenizer ElectraTokenizer MobileBertTokenizer ConvBertTokenizer SqueezeBertTokenizer
    LayoutLMTokenizer LxmertTokenizer RetriBertTokenizer DPRReaderTokenizer DPRQuestionEncoderTokenizer
    DPRContextEncoderTokenizer""".split()
)
_SAVE = "save the tokenizer with transformers, so that the folder has a tokenizer.json"


def convert_merges(vocab_file: Path, merges_file: Path, settings: TokenizerSettings) -> Part:
    """The document of a byte-level BPE in vocab.json and merges.txt: GPT-2's and Qwen2's classes."""
    name = settings.tokenizer_class
    vocab = _vocab(vocab_file)
    if name not in _GPT2_LIKE and name != "Qwen2Tokenizer":
        raise TokenizerError(
            f"{shown(vocab_file)}: how {name} cuts text is not known here: {_SAVE}."
        )
    is_byte_level = set(byte_level_alphabet()) <= vocab.keys()
    if name is None and (not is_byte_level or any(text.endswith("</w>") for text in vocab)):
        raise TokenizerError(
            f"{shown(vocab_file)} is not GPT-2's byte-level BPE and no tokenizer_class is named: {_SAVE}."
        )
    model = bpe_model(
        vocab, _merges(merges_file, vocab), continuing_subword_prefix="", end_of_word_suffix=""
    )
    if name == "Qwen2Tokenizer":
        return tokenizer_document(
            model,
            normalizer={"type": "NFC"},
            pre_tokenizer=byte_level_after(QWEN_PATTERN),
            post_processor=byte_level(use_regex=False),
            decoder=byte_level(use_regex=False),
        )
    adds_space = bool(settings.config.get("add_prefix_space", False))
    return tokenizer_document(
        model,
        pre_tokenizer=byte_level(add_prefix_space=adds_space),
        post_processor=_around(vocab, settings, is_wrapped=_GPT2_LIKE[name]),
        decoder=byte_level(),
    )


def _around(vocab: dict[str, int], settings: TokenizerSettings, *, is_wrapped: bool) -> Part | None:
    if not is_wrapped:
        first = settings.special.get("bos_token", "<|endoftext|>")
        if settings.config.get("add_bos_token") is not True:
            return byte_level()
        _require(vocab, (first,))
        return template([first], [], vocab)
    begin = settings.special.get("cls_token", settings.special.get("bos_token", "<s>"))
    end = settings.special.get("sep_token", settings.special.get("eos_token", "</s>"))
    _require(vocab, (begin, end))
    return template([begin], [end], vocab, pair_after=[end])


def _require(vocab: dict[str, int], texts: tuple[str, ...]) -> None:
    missing = next((text for text in texts if text not in vocab), None)
    if missing is not None:
        raise TokenizerError(
            f"The special token {shown(missing)} that begins or ends a text is not in the vocabulary: name the right "
            "one in tokenizer_config.json."
        )


def _vocab(file: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for text, index in read_object(file).items():
        if not is_id(index):
            raise TokenizerError(
                f"{shown(file)}: the id of {shown(text)} is {shown(index)}: fetch the file again."
            )
        found[text_of(text, shown(file))] = index
    return found


def _merges(file: Path, vocab: dict[str, int]) -> list[list[str]]:
    found: list[list[str]] = []
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        pair = line.split(" ")
        if len(pair) != 2:
            raise TokenizerError(
                f"{shown(file)}: line {number} is not a pair of tokens: fetch it again."
            )
        unknown = next((text for text in (*pair, "".join(pair)) if text not in vocab), None)
        if unknown is not None:
            raise TokenizerError(
                f"{shown(file)}: line {number} names {shown(unknown)}, which is not in the vocabulary: fetch both "
                "files again."
            )
        found.append(pair)
    return found


def convert_wordpiece(file: Path, settings: TokenizerSettings) -> Part:
    """The document of BERT's vocab.txt, one token a line; Chinese characters are cut and text is lower-cased or not
    as tokenizer_config.json says (by default as in BERT: both).
    """
    name = settings.tokenizer_class
    if name is not None and name not in _BERT_LIKE:
        raise TokenizerError(f"{shown(file)}: how {name} cuts text is not known here: {_SAVE}.")
    lines = read_text(file).split("\n")
    if lines and not lines[-1]:
        lines.pop()
    vocab: dict[str, int] = {}
    for number, line in enumerate(lines):
        text = line.removesuffix("\r")
        if text in vocab:
            raise TokenizerError(
                f"{shown(file)} has the token {shown(text)} on lines {vocab[text] + 1} and {number + 1}: correct it."
            )
        vocab[text] = number
    return _bert(vocab, settings)


def _bert(vocab: dict[str, int], settings: TokenizerSettings) -> Part:
    config, special = settings.config, settings.special
    unknown = special.get("unk_token", "[UNK]")
    begin, end = special.get("cls_token", "[CLS]"), special.get("sep_token", "[SEP]")
    _require(vocab, (unknown, begin, end))
    lowercase = _switch(config, "do_lower_case", default=True)
    accents = config.get("strip_accents")
    normalizer: Part = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": _switch(config, "tokenize_chinese_chars", default=True),
        "strip_accents": accents if isinstance(accents, bool) else None,
        "lowercase": lowercase,
    }
    model: Part = {
        "type": "WordPiece",
        "unk_token": unknown,
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": vocab,
    }
    return tokenizer_document(
        model,
        normalizer=normalizer,
        pre_tokenizer={"type": "BertPreTokenizer"},
        post_processor=template([begin], [end], vocab, pair_after=[]),
        decoder={"type": "WordPiece", "prefix": "##", "cleanup": True},
    )


def _switch(config: Any, name: str, *, default: bool) -> bool:
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise TokenizerError(
            f"tokenizer_config.json: {name} is {shown(value)}, but it must be true or false."
        )
    return value
