"""The vocabulary of a checkpoint, from whichever of the Hub's tokenizer files it has."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weightsmith.checkpoints import Checkpoint, is_inside
from weightsmith.errors import TokenizerError
from weightsmith.findings import Finding, Severity
from weightsmith.tensors import collection_paused, shown
from weightsmith.tokenizers.consistency import disagreement
from weightsmith.tokenizers.documents import Part, added_entry
from weightsmith.tokenizers.sentencepiece import convert_sentencepiece
from weightsmith.tokenizers.slow import convert_merges, convert_wordpiece
from weightsmith.tokenizers.tekken import convert_tekken
from weightsmith.tokenizers.tokenizer_settings import (
    TokenizerSettings,
    flags_of,
    is_id,
    read_bytes,
    read_object,
    read_settings,
    text_of,
)
from weightsmith.tokenizers.vocabulary import AddedFlags, Vocabulary

FAST = "tokenizer.json"
SENTENCEPIECE = (
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
)
_REFUSED = ("qwen.tiktoken", "tiktoken.model", "source.spm", "bpe.codes", "vocab.bpe")
_MODELS = ("BPE", "WordPiece", "Unigram", "WordLevel")


def read_vocabulary(checkpoint: Checkpoint) -> Vocabulary | None:
    """The vocabulary of a checkpoint, or None where its folder has no tokenizer (or it is one file).

    Raises TokenizerError for files that are damaged, contradict each other or cannot be converted exactly.
    """
    return (
        read_tokenizer_folder(checkpoint.tokenizer_folder, checkpoint.identity)
        if checkpoint.is_folder
        else None
    )


def read_tokenizer_folder(folder: Path, identity: str | None = None) -> Vocabulary | None:
    """The vocabulary of a folder with tokenizer files; tokenizer.json goes before all other forms."""
    with collection_paused():
        return _read(folder, identity or shown(folder))


def _read(folder: Path, identity: str) -> Vocabulary | None:
    settings = read_settings(folder)
    document = _document(folder, settings)
    if document is None:
        return None
    where = shown(folder)
    unused = _unused(document)
    ids = _model_ids(document, where)
    added, findings = _complete(document, ids, settings, where)
    in_order = dict(sorted(ids.items(), key=lambda pair: pair[1]))
    vocabulary = Vocabulary(
        identity=identity,
        model=_kind(document),
        ids=in_order,
        added=added,
        special=settings.special,
        additional=settings.additional,
        chat_templates=settings.chat_templates,
        document=document,
        settings=settings.config,
        unused=unused,
        findings=tuple(findings),
    )
    _check(vocabulary, where)
    return vocabulary


def _document(folder: Path, settings: TokenizerSettings) -> Part | None:
    def has(name: str) -> bool:
        return _is_usable(folder / name, folder)

    if has(FAST):
        return read_object(folder / FAST)
    model = next((folder / name for name in SENTENCEPIECE if has(name)), None)
    if model is not None:
        return _model_file(model, settings)
    if has("vocab.json") and has("merges.txt"):
        return convert_merges(folder / "vocab.json", folder / "merges.txt", settings)
    if has("vocab.txt") and not has("bpe.codes"):
        return convert_wordpiece(folder / "vocab.txt", settings)
    if has("tekken.json"):
        return convert_tekken(folder / "tekken.json")
    refused = next((name for name in _REFUSED if has(name)), None)
    if refused is not None:
        raise _not_convertible(folder / refused)
    return None


def _is_usable(file: Path, folder: Path) -> bool:
    """Whether there is such a file; raises TokenizerError for something of that name that may not be read."""
    if is_inside(file, folder):
        return True
    if os.path.lexists(file):
        raise TokenizerError(
            f"{shown(file)} is no regular file of its folder (a broken link, or one that leads out of it): put a copy "
            "of the file there."
        )
    return False


def _model_file(file: Path, settings: TokenizerSettings) -> Part:
    # Llama 3's tokenizer.model is a list of base64 byte tokens; a sentencepiece file begins with one of its fields.
    if not read_bytes(file).startswith((b"\n", b"\x12", b"\x1a")):
        raise _not_convertible(file)
    return convert_sentencepiece(file, settings)


def _not_convertible(file: Path) -> TokenizerError:
    return TokenizerError(
        f"{shown(file)} does not say how text is cut before its tokens are looked up: save the tokenizer with "
        "transformers, so that the folder has a tokenizer.json."
    )


def _unused(document: Part) -> frozenset[str]:
    model = document.get("model")
    if not isinstance(model, dict) or model.get("type") != "Unigram":
        return frozenset()
    vocab = model.get("vocab")
    entries = vocab if isinstance(vocab, list) else []
    return frozenset(
        entry[0]
        for entry in entries
        if isinstance(entry, list)
        and len(entry) == 2
        and isinstance(entry[0], str)
        and isinstance(entry[1], float)
        and entry[1] < -5e4
    )


def _model_ids(document: Part, where: str) -> dict[str, int]:
    """Id by text of the model's own vocabulary."""
    model = document.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if isinstance(model, dict) and kind is None:
        # Files of before 2021 leave the type out.
        kind = model["type"] = _guessed(model)
    if not isinstance(model, dict) or kind not in _MODELS:
        raise TokenizerError(
            f"{where}: {FAST} has a model of the kind {shown(kind)}, but only {', '.join(_MODELS)} are known."
        )
    vocab = model.get("vocab")
    if kind == "Unigram":
        return _unigram_ids(vocab, where)
    if not isinstance(vocab, dict):
        raise TokenizerError(f"{where}: {FAST} has no vocabulary: fetch it again.")
    ids = vocab.values()
    if vocab and not (set(map(type, ids)) == {int} and is_id(min(ids)) and is_id(max(ids))):
        wrong = next(text for text, index in vocab.items() if not is_id(index))
        raise TokenizerError(
            f"{where}: {FAST} gives {shown(wrong)} the id {shown(vocab[wrong])}: fetch it again."
        )
    _one_text_each(vocab, where)
    return dict(vocab)


def _guessed(model: Mapping[str, Any]) -> str:
    if "merges" in model:
        return "BPE"
    if "unk_id" in model:
        return "Unigram"
    return "WordPiece" if "continuing_subword_prefix" in model else "WordLevel"


def _unigram_ids(vocab: object, where: str) -> dict[str, int]:
    pairs = vocab if isinstance(vocab, list) else None
    if pairs is None or not all(
        isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs
    ):
        raise TokenizerError(f"{where}: {FAST} has no list of pieces with scores: fetch it again.")
    ids = {pair[0]: index for index, pair in enumerate(pairs)}
    if len(ids) != len(pairs):
        twice = next(pair[0] for index, pair in enumerate(pairs) if ids[pair[0]] != index)
        raise TokenizerError(f"{where}: {FAST} has the piece {shown(twice)} twice: fetch it again.")
    return ids


def _one_text_each(ids: Mapping[str, int], where: str) -> None:
    if len(set(ids.values())) == len(ids):
        return
    first: dict[int, str] = {}
    for text, index in ids.items():
        other = first.setdefault(index, text)
        if other != text:
            raise TokenizerError(
                f"{where}: the id {index} belongs to two tokens, {shown(other)} and {shown(text)}: correct the "
                "tokenizer's files."
            )


def _complete(
    document: Part, ids: dict[str, int], settings: TokenizerSettings, where: str
) -> tuple[dict[str, AddedFlags], list[Finding]]:
    """The added tokens of all files, in the document and in `ids`; what transformers would add is added."""
    texts = {index: text for text, index in ids.items()}
    added: dict[str, AddedFlags] = {}

    def add(index: int, text: str, flags: AddedFlags) -> None:
        if texts.setdefault(index, text) != text:
            raise TokenizerError(
                f"{where}: the id {index} belongs to two tokens, {shown(texts[index])} and {shown(text)}: correct "
                "the tokenizer's files."
            )
        if ids.setdefault(text, index) != index:
            raise TokenizerError(
                f"{where}: the token {shown(text)} has two ids, {ids[text]} and {index}: correct the tokenizer's files."
            )
        added[text] = flags

    for index, text, flags in _entries(document, where):
        add(index, text, flags)
    for index, token in sorted(settings.declared.items()):
        add(index, token.text, token.flags)
    findings: list[Finding] = []
    for text in dict.fromkeys([*settings.special.values(), *settings.additional]):
        flags = settings.declarations.get(text, AddedFlags(normalized=False, special=True))
        if text not in ids:
            findings.append(_absent(text, len(ids), where))
            add(1 + max(texts, default=-1), text, flags)
        elif text not in added:
            add(ids[text], text, flags)
    document["added_tokens"] = [
        added_entry(ids[text], text, flags)
        for text, flags in sorted(added.items(), key=lambda pair: ids[pair[0]])
    ]
    return {
        entry["content"]: added[entry["content"]] for entry in document["added_tokens"]
    }, findings


def _entries(document: Part, where: str) -> list[tuple[int, str, AddedFlags]]:
    entries = document.get("added_tokens") or []
    where = f"{where}: {FAST}"
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise TokenizerError(f"{where} has no list of added tokens: fetch it again.")
    found: list[tuple[int, str, AddedFlags]] = []
    for entry in entries:
        index = entry.get("id")
        if not is_id(index):
            raise TokenizerError(
                f"{where} has an added token of the id {shown(index)}: fetch it again."
            )
        found.append((index, text_of(entry.get("content"), where), flags_of(entry, where)))
    return found


def _absent(text: str, index: int, where: str) -> Finding:
    return Finding(
        Severity.WARNING,
        "special-token-absent",
        where,
        f"the special token {shown(text)} is named but not in the vocabulary, so it is taken as a new token with the "
        f"id {index}, as transformers does",
        "name a token of the vocabulary in tokenizer_config.json",
    )


def _kind(document: Part) -> str:
    kind = str(document["model"]["type"])
    parts = (document.get("pre_tokenizer"), document.get("decoder"), document.get("normalizer"))
    is_byte_level = any('"ByteLevel"' in json.dumps(part) for part in parts)
    return "ByteLevelBPE" if kind == "BPE" and is_byte_level else kind


def _check(vocabulary: Vocabulary, where: str) -> None:
    """The library must read the tokenizer and give every token the id that the files say."""
    found = disagreement(vocabulary, where)
    if found is None:
        return
    text, index, theirs = found
    raise TokenizerError(
        f"{where}: the token {shown(text)} has the id {index} in the files but {theirs} once the tokenizers "
        "library has read them: correct the ids of the added tokens."
    )
