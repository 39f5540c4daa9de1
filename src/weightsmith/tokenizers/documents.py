"""Parts of a tokenizer.json, as the tokenizers library writes them, for tokenizers that come in another form."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from weightsmith.tokenizers.vocabulary import SPACE_MARK, AddedFlags

Part = dict[str, Any]

# How GPT-2's successors cut text before byte pairs are merged; Llama 3 takes up to three digits, Qwen one.
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tokenizer_document(model: Part, **parts: Part | None) -> Part:
    """A whole tokenizer.json around a model; parts left out are null."""
    empty = dict.fromkeys(("normalizer", "pre_tokenizer", "post_processor", "decoder"))
    head: Part = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": []}
    return {**head, **empty, **parts, "model": model}


def bpe_model(
    vocab: Mapping[str, int], merges: Iterable[Sequence[str]], **settings: str | bool | None
) -> Part:
    """A BPE model; `settings` are its switches (unk_token, fuse_unk, byte_fallback, ignore_merges...)."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        **settings,
        "vocab": dict(vocab),
        "merges": [*map(list, merges)],
    }


def added_entry(index: int, text: str, flags: AddedFlags) -> Part:
    """An entry of `added_tokens`."""
    return {"id": index, "content": text, **asdict(flags)}


def sequence(kind: str, parts: Sequence[Part]) -> Part | None:
    """Several normalizers, pre_tokenizers or decoders in a row; `kind` is the key of the list."""
    if len(parts) < 2:
        return parts[0] if parts else None
    return {"type": "Sequence", kind: list(parts)}


def replace(pattern: str, content: str, *, regex: bool = False) -> Part:
    """A normalizer or decoder that replaces text."""
    return {
        "type": "Replace",
        "pattern": {"Regex" if regex else "String": pattern},
        "content": content,
    }


def byte_level(*, add_prefix_space: bool = False, use_regex: bool = True) -> Part:
    """GPT-2's byte-level part: pre_tokenizer, post_processor and decoder have the same form."""
    return {
        "type": "ByteLevel",
        "add_prefix_space": add_prefix_space,
        "trim_offsets": False,
        "use_regex": use_regex,
    }


def byte_level_after(pattern: str) -> Part:
    """Cut text by a pattern, then turn each piece into byte characters."""
    split = {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }
    return {"type": "Sequence", "pretokenizers": [split, byte_level(use_regex=False)]}


def metaspace(*, prepend: bool, split: bool) -> Part:
    """Spaces become ▁, with one before the text where `prepend`; `split` cuts the text before each."""
    scheme = "always" if prepend else "never"
    return {
        "type": "Metaspace",
        "replacement": SPACE_MARK,
        "prepend_scheme": scheme,
        "split": split,
    }


def byte_fallback_decoder(*, strip: bool) -> Part:
    """▁ becomes a space and byte tokens bytes; `strip` drops the space that was put before the text."""
    steps: list[Part] = [replace(SPACE_MARK, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    if strip:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def template(
    before: Sequence[str],
    after: Sequence[str],
    ids: Mapping[str, int],
    *,
    pair_after: Sequence[str] | None = None,
) -> Part | None:
    """A post_processor that puts special tokens around a text; None where there are none to put."""
    if not before and not after:
        return None

    def special(text: str) -> Part:
        return {"SpecialToken": {"id": text, "type_id": 0}}

    single = [*map(special, before), {"Sequence": {"id": "A", "type_id": 0}}, *map(special, after)]
    second = [*map(special, before if pair_after is None else pair_after)]
    pair = [*single, *second, {"Sequence": {"id": "B", "type_id": 0}}, *map(special, after)]
    named = dict.fromkeys([*before, *after, *(pair_after or ())])
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": pair,
        "special_tokens": {
            text: {"id": text, "ids": [ids[text]], "tokens": [text]} for text in named
        },
    }
