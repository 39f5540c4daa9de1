"""Texts as tokens: through the tokenizer beside the weights, or as bytes where there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.errors import UsageError
from weightsmith.live import LiveModel, NetworkKind
from weightsmith.wording import literal

_BYTES = 256
_LONGEST = 1024


@dataclass(frozen=True, slots=True)
class ByteTokens:
    """Tokens are the bytes of UTF-8; ids from 256 on are special.

    `prefix` is what every text begins with, `end` the ids that end an answer.
    """

    prefix: tuple[int, ...]
    end: tuple[int, ...]

    def encode(self, text: str) -> list[int]:
        """The tokens of a text alone."""
        return list(text.encode())

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without special ones."""
        return bytes(t for t in tokens if t < _BYTES).decode(errors="replace")


@dataclass(frozen=True, slots=True)
class TokenizerTokens:
    """The tokens of a tokenizer of transformers."""

    tokenizer: Any
    prefix: tuple[int, ...]
    end: tuple[int, ...]

    def encode(self, text: str) -> list[int]:
        """The tokens of a text alone."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without special ones."""
        text: str = self.tokenizer.decode(
            list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


Tokens = ByteTokens | TokenizerTokens


def tokens_of(model: LiveModel) -> Tokens:
    """How a model's texts become tokens.

    The prefix is the token that begins a text, else the one that ends it, else none; it is what the first token is
    predicted from. A model without a tokenizer reads bytes. Raises UsageError where neither is possible.
    """
    ends = _ids(model, "eos_token_id")
    if not model.has_tokenizer:
        size = model.number("vocab_size") or 0
        if not _BYTES <= size <= 2 * _BYTES:
            raise UsageError(
                f"{model.name!r} has no tokenizer, and its vocabulary of {size} is none of bytes; put the tokenizer's "
                "files into the folder."
            )
        special = tuple(end for end in ends if end >= _BYTES)
        begin = tuple(b for b in _ids(model, "bos_token_id") if b >= _BYTES)
        return ByteTokens((begin or special)[:1], special)
    tokenizer = model.tokenizer()
    own_end = tokenizer.eos_token_id
    end = tuple(dict.fromkeys([*([] if own_end is None else [own_end]), *ends]))
    begin = tokenizer.bos_token_id
    if begin is None:
        begin = own_end
    return TokenizerTokens(tokenizer, () if begin is None else (begin,), end)


def context_of(model: LiveModel, asked: int | None) -> int:
    """How many tokens the network reads at a time: what the task asks for, else what the model was made for.

    Raises UsageError for more than the model has positions for.
    """
    positions = model.number("max_position_embeddings")
    if asked is None:
        return min(positions or _LONGEST, _LONGEST)
    if positions is not None and asked > positions:
        raise UsageError(
            f"The context of {asked} tokens is longer than the {positions} positions of {model.name!r}; choose less."
        )
    return asked


def check_language_model(model: LiveModel, task: str) -> None:
    """Raise UsageError for a network that does not predict the next token."""
    name = type(model.module).__name__
    if model.kind is not NetworkKind.CAUSAL:
        raise UsageError(
            f"Task {task!r} needs a causal language model, but {model.name!r} is a {name}; give another checkpoint."
        )


def _ids(model: LiveModel, key: str) -> tuple[int, ...]:
    given = model.config.get(key)
    ids = given if isinstance(given, list) else [] if given is None else [given]
    if not all(isinstance(i, int) and not isinstance(i, bool) and abs(i) < 2**31 for i in ids):
        raise UsageError(
            f"The config.json of {model.name!r} has {key}: {literal(given)}, which is no token; correct it."
        )
    return tuple(ids)
