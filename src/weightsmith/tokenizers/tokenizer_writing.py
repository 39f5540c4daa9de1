"""The files of a changed tokenizer, such that every form in the folder says the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weightsmith.checkpoints import json_bytes, tokenizer_files
from weightsmith.errors import TokenizerError
from weightsmith.findings import Finding, Severity
from weightsmith.tensors import shown
from weightsmith.tokenizers.consistency import disagreement
from weightsmith.tokenizers.tokenizer_settings import (
    ADDED,
    CONFIG,
    SPECIAL_MAP,
    read_bytes,
    read_object,
)
from weightsmith.tokenizers.vocabulary import Vocabulary

_FAST = "tokenizer.json"
# Forms of the vocabulary itself, which tokenizer.json replaces: left as they are they would contradict it.
_SLOW = frozenset(
    """tokenizer.model tokenizer.model.v1 tokenizer.model.v2 tokenizer.model.v3 spiece.model
    sentencepiece.bpe.model sentencepiece.model vocab.json vocab.txt vocab.bpe merges.txt tekken.json
    qwen.tiktoken tiktoken.model bpe.codes source.spm target.spm""".split()
)


@dataclass(frozen=True, slots=True)
class WrittenFiles:
    """Files by relative path, and what had to be left out."""

    files: Mapping[str, bytes]
    findings: tuple[Finding, ...]


def written_files(vocabulary: Vocabulary, folder: Path) -> WrittenFiles:
    """The tokenizer's files for a vocabulary that was made from the one in `folder`.

    tokenizer.json and tokenizer_config.json are always written; special_tokens_map.json and added_tokens.json where
    the folder has them; chat templates are carried; other forms of the vocabulary are left out, with a finding.
    Raises TokenizerError where the tokenizers library would not give every token its id.
    """
    if disagreement(vocabulary, vocabulary.identity) is not None:
        raise TokenizerError(
            f"{vocabulary.identity}: the changed tokenizer would not give every token its id, for its ids have gaps: "
            "use it unchanged."
        )
    present = [file.as_posix() for file in tokenizer_files(folder)]
    files = {name: read_bytes(folder / name) for name in present if name not in _SLOW}
    # Without line breaks, which cost seconds for a large vocabulary.
    files[_FAST] = json_bytes(vocabulary.document, indent=None)
    files[CONFIG] = json_bytes(_config(vocabulary))
    if SPECIAL_MAP in files:
        files[SPECIAL_MAP] = json_bytes(_special_map(vocabulary, folder))
    if ADDED in files:
        files[ADDED] = json_bytes({text: vocabulary.ids[text] for text in vocabulary.added})
    left_out = [name for name in present if name in _SLOW]
    return WrittenFiles(dict(sorted(files.items())), tuple(_left_out(vocabulary, left_out)))


def _config(vocabulary: Vocabulary) -> dict[str, Any]:
    """tokenizer_config.json with every added token and without roles whose token is gone."""
    config = _kept_roles(vocabulary.settings, vocabulary)
    # It names code of the checkpoint, which is never carried.
    config.pop("auto_map", None)
    config["added_tokens_decoder"] = {
        str(vocabulary.ids[text]): {"content": text, **asdict(flags)}
        for text, flags in vocabulary.added.items()
    }
    # With the decoder above transformers reads no special_tokens_map.json, so its roles must be here too.
    for role, text in vocabulary.special.items():
        config.setdefault(role, text)
        if config[role] is None:
            config[role] = text
    if vocabulary.additional and not {"extra_special_tokens", "additional_special_tokens"} & set(
        config
    ):
        config["additional_special_tokens"] = list(vocabulary.additional)
    config.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    return config


def _special_map(vocabulary: Vocabulary, folder: Path) -> dict[str, Any]:
    return _kept_roles(read_object(folder / SPECIAL_MAP), vocabulary)


def _kept_roles(document: Mapping[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    """A file that names special tokens, without those that the vocabulary has not."""

    def is_kept(value: Any) -> bool:
        text = value.get("content") if isinstance(value, dict) else value
        return not isinstance(text, str) or not text or text in vocabulary.ids

    kept = {
        name: value
        for name, value in document.items()
        if not name.endswith("_token") or is_kept(value)
    }
    for name in ("additional_special_tokens", "extra_special_tokens"):
        value = kept.get(name)
        if isinstance(value, list):
            kept[name] = [entry for entry in value if is_kept(entry)]
        elif isinstance(value, dict):
            kept[name] = {key: entry for key, entry in value.items() if is_kept(entry)}
    return kept


def _left_out(vocabulary: Vocabulary, names: list[str]) -> list[Finding]:
    if not names:
        return []
    return [
        Finding(
            Severity.NOTE,
            "slow-tokenizer-left-out",
            vocabulary.identity,
            f"{', '.join(map(shown, names))} of {vocabulary.identity} describe the tokenizer before the change, so "
            f"only {_FAST} is written",
        )
    ]
