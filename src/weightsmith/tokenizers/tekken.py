"""Mistral's tekken.json: byte tokens by rank, special tokens in front of them."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path
from typing import Any

from weightsmith.errors import TokenizerError
from weightsmith.tensors import shown
from weightsmith.tokenizers.documents import (
    Part,
    added_entry,
    bpe_model,
    byte_level,
    byte_level_after,
    template,
    tokenizer_document,
)
from weightsmith.tokenizers.tokenizer_settings import is_id, read_object
from weightsmith.tokenizers.vocabulary import AddedFlags, byte_level_alphabet

_NAMES = (
    "<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS] [/TOOL_RESULTS] [TOOL_CALLS] "
    "[IMG] <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CONTENT]"
)
_SPECIALS = [{"rank": rank, "token_str": text} for rank, text in enumerate(_NAMES.split())]

# Far above those of all tokenizers; work grows with the first and with the square of the second.
_MOST_SPECIALS = 100_000
_LONGEST_TOKEN = 10_000


def convert_tekken(file: Path) -> Part:
    """The document of a tekken.json; one that lists no special tokens (version 3) has Mistral's first twenty.

    Ids are those of Mistral: a special token's rank, and for text the rank plus the number of special tokens.
    """
    document = read_object(file)
    config, specials = document.get("config"), document.get("special_tokens", _SPECIALS)
    if not isinstance(config, dict) or not isinstance(specials, list):
        raise TokenizerError(
            f"{shown(file)} has no configuration or special tokens: fetch it again."
        )
    count = _number(config, "default_num_special_tokens", file)
    if count > _MOST_SPECIALS:
        raise TokenizerError(f"{shown(file)} counts {count} special tokens: fetch it again.")
    size = _number(config, "default_vocab_size", file)
    ranks = _ranks(document.get("vocab"), size - count, file)
    characters = {byte: char for char, byte in byte_level_alphabet().items()}
    texts = ["".join(map(characters.__getitem__, token)) for token in ranks]
    vocab = {text: rank + count for rank, text in enumerate(texts)}
    merges = _merges(ranks)
    model = bpe_model(vocab, [(texts[a], texts[b]) for a, b in merges], ignore_merges=True)
    ids = _special_ids(specials, count, file)
    pattern = config.get("pattern")
    if not isinstance(pattern, str):
        raise TokenizerError(f"{shown(file)} has no pattern that cuts text: fetch it again.")
    result = tokenizer_document(
        model,
        pre_tokenizer=byte_level_after(pattern),
        post_processor=template(["<s>"], [], ids) if "<s>" in ids else None,
        decoder=byte_level(),
    )
    # In the vocabulary as well: the library numbers added tokens that are not there behind it.
    model["vocab"] = {**ids, **vocab}
    flags = AddedFlags(normalized=False, special=True)
    result["added_tokens"] = [added_entry(index, text, flags) for text, index in ids.items()]
    return result


def _number(config: dict[str, Any], name: str, file: Path) -> int:
    value = config.get(name)
    if not is_id(value):
        raise TokenizerError(f"{shown(file)}: {name} is {shown(value)}, but it must be a number.")
    return int(value)  # type: ignore[arg-type]


def _ranks(entries: object, count: int, file: Path) -> list[bytes]:
    """The bytes of each token, by rank."""
    damaged = TokenizerError(f"{shown(file)} has no list of byte tokens by rank: fetch it again.")
    if not isinstance(entries, list) or not 256 <= count <= len(entries):
        raise damaged
    found: list[bytes] = []
    try:
        for rank, entry in enumerate(entries[:count]):
            if entry["rank"] != rank:
                raise damaged
            found.append(base64.b64decode(entry["token_bytes"], validate=True))
            if len(found[-1]) > _LONGEST_TOKEN:
                raise damaged
    except (KeyError, TypeError, binascii.Error, ValueError):
        raise damaged from None
    if len(set(found)) != count or any(len(token) != 1 for token in found[:256]):
        raise damaged
    return found


def _merges(ranks: list[bytes]) -> list[tuple[int, int]]:
    """Every pair of tokens that is a token, by the rank of what they make, then of the parts."""
    rank_of = {token: rank for rank, token in enumerate(ranks)}
    found: list[tuple[int, int]] = []
    for token in ranks[256:]:
        cuts = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        pairs = ((rank_of[a], rank_of[b]) for a, b in cuts if a in rank_of and b in rank_of)
        found += sorted(pairs)
    return found


def _special_ids(entries: list[Any], count: int, file: Path) -> dict[str, int]:
    ids: dict[str, int] = {}
    for entry in entries:
        rank = entry.get("rank") if isinstance(entry, dict) else None
        text = entry.get("token_str") if isinstance(entry, dict) else None
        if not is_id(rank) or rank >= count or not isinstance(text, str) or text in ids:  # type: ignore[operator]
            raise TokenizerError(
                f"{shown(file)}: {shown(entry)} is not a special token: fetch it again."
            )
        ids[text] = rank  # type: ignore[assignment]
    free = sorted(set(range(count)) - set(ids.values()))
    if len(ids) + len(free) != count:
        raise TokenizerError(f"{shown(file)} gives one id to two special tokens: fetch it again.")
    # Ranks that no token has been given yet; Mistral reserves them under such names.
    return ids | {f"<SPECIAL_{index}>": index for index in free}
