"""A vocabulary: the tokens of one tokenizer, their ids, what each stands for, and its encoder."""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from weightsmith.findings import Finding

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPACE_MARK = "▁"


class TokenKind(enum.Enum):
    """What a token is for; the value is its name in messages."""

    NORMAL = "normal"
    CONTROL = "control"
    ADDED = "added"
    BYTE = "byte"
    UNKNOWN = "unknown"
    UNUSED = "unused"


@dataclass(frozen=True, slots=True)
class AddedFlags:
    """How an added token is found in text, with the defaults of the tokenizers library."""

    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = True
    special: bool = False


@dataclass(frozen=True, slots=True)
class Token:
    """One token: `text` as the tokenizer stores it ("Ġthe", "▁the", "##ing")."""

    id: int
    text: str
    kind: TokenKind
    flags: AddedFlags | None = None


# A token's meaning: NORMAL with bytes of text, CONTROL with the token's own text, or UNKNOWN.
Key = tuple[TokenKind, bytes]


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens of one tokenizer.

    `identity` names the checkpoint in messages. `model` is the kind of tokenizer: ByteLevelBPE, BPE, WordPiece,
    Unigram or WordLevel. `ids` maps each token's text to its id, in the order of ids, which may have gaps. `added`
    has the flags of the added tokens. `special` maps a role ("bos_token") to a text; `additional` are special tokens
    without a role. `document` is the content of tokenizer.json, made up where the checkpoint has a slow form only,
    and `settings` that of tokenizer_config.json. `findings` is what was odd in the files.
    """

    identity: str
    model: str
    ids: Mapping[str, int]
    added: Mapping[str, AddedFlags]
    special: Mapping[str, str]
    additional: tuple[str, ...]
    chat_templates: Mapping[str, str]
    document: Mapping[str, Any] = field(repr=False)
    settings: Mapping[str, Any] = field(repr=False)
    unused: frozenset[str] = frozenset()
    findings: tuple[Finding, ...] = ()

    @cached_property
    def size(self) -> int:
        """Largest id + 1: the rows that a table needs."""
        return 1 + max(self.ids.values(), default=-1)

    @cached_property
    def texts(self) -> Mapping[int, str]:
        """Text by id, in the order of ids."""
        return {index: text for text, index in self.ids.items()}

    @cached_property
    def tokens(self) -> tuple[Token, ...]:
        """All tokens by id, ascending."""
        return tuple(self.token(text) for text in self.ids)

    def token(self, text: str) -> Token:
        """The token of a text; raises KeyError where there is none."""
        return Token(self.ids[text], text, self.kind(text), self.added.get(text))

    def kind(self, text: str) -> TokenKind:
        """What the token of a text is for."""
        if text == self.unknown:
            return TokenKind.UNKNOWN
        flags = self.added.get(text)
        if flags is not None:
            return TokenKind.CONTROL if flags.special else TokenKind.ADDED
        if text in self.unused:
            return TokenKind.UNUSED
        return TokenKind.BYTE if self._byte_of(text) is not None else TokenKind.NORMAL

    @cached_property
    def special_ids(self) -> Mapping[str, int]:
        """Id by role: {"eos_token": 2, ...}."""
        return {role: self.ids[text] for role, text in self.special.items()}

    @cached_property
    def unknown(self) -> str | None:
        """The token for text that no other token covers, or None where the model has none or never needs it."""
        model = self.document["model"]
        if model.get("type") == "Unigram":
            index = model.get("unk_id")
            return None if index is None else self.texts.get(index)
        unknown = model.get("unk_token")
        # Byte-level models name one out of habit (often their end of text) and can never produce it.
        return None if self.model == "ByteLevelBPE" else unknown

    def _byte_of(self, text: str) -> bytes | None:
        """The byte that a token such as <0x0A> stands for, where the model falls back to bytes."""
        if len(text) != 6 or not text.startswith("<0x") or not self._falls_back:
            return None
        try:
            return bytes.fromhex(text[3:5]) if text[5] == ">" else None
        except ValueError:
            return None

    @cached_property
    def _falls_back(self) -> bool:
        return bool(self.document["model"].get("byte_fallback"))

    def key(self, token: Token) -> Key:
        r"""The meaning of a token, equal across families where two tokens stand for the same.

        "Ġthe", "▁the" and BERT's "the" are all b" the"; <0x0A> is b"\n". An added token that is not special
        stands for its own text. A special token means itself, and all unknown tokens mean the same.
        """
        return self._key(token.text)

    def _key(self, text: str) -> Key:
        if text == self.unknown:
            return TokenKind.UNKNOWN, b""
        flags = self.added.get(text)
        if flags is not None:
            kind = TokenKind.CONTROL if flags.special else TokenKind.NORMAL
            return kind, text.encode()
        return TokenKind.NORMAL, self._meaning(text)

    def _meaning(self, text: str) -> bytes:
        if self.model == "ByteLevelBPE":
            return _byte_level_bytes(text, self.document["model"].get("end_of_word_suffix"))
        if self.model == "WordPiece":
            prefix = self.document["model"].get("continuing_subword_prefix", "##")
            return text[len(prefix) :].encode() if text.startswith(prefix) else f" {text}".encode()
        byte = self._byte_of(text)
        return text.replace(SPACE_MARK, " ").encode() if byte is None else byte

    @cached_property
    def keys(self) -> Mapping[Key, int]:
        """Id by meaning. Where several tokens mean the same, a token of text goes before a byte, then the lowest id."""
        found: dict[Key, int] = {}
        later: list[tuple[Key, int]] = []
        for text, index in self.ids.items():
            key = self._key(text)
            if self._byte_of(text) is None:
                found.setdefault(key, index)
            else:
                later.append((key, index))
        for key, index in later:
            found.setdefault(key, index)
        return found

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        from tokenizers import Tokenizer

        # What would cut off, fill or randomize a text says nothing about its tokens.
        model = {**self.document["model"], "dropout": None}
        plain = {**self.document, "truncation": None, "padding": None, "model": model}
        return Tokenizer.from_str(json.dumps(plain))

    def library_ids(self) -> dict[str, int]:
        """Id by text as the tokenizers library has them; whatever it raises for a malformed document passes."""
        return dict(self._tokenizer.get_vocab(with_added_tokens=True))

    def require_readable_pipeline(self) -> None:
        """Let the library read all but the tokens; whatever it raises for a malformed document passes."""
        from tokenizers import Tokenizer

        model = {**self.document["model"], "vocab": {}, "merges": []}
        Tokenizer.from_str(json.dumps({**self.document, "model": model}))

    @cached_property
    def _model(self) -> Any:
        # Each look at the tokenizer's attribute makes a new object.
        return self._tokenizer.model

    def cut(self, text: str) -> list[str]:
        """The tokens that the model alone makes of a text, without normalizing it or cutting it first."""
        return [token.value for token in self._model.tokenize(text)]

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without the special tokens that a post-processor would add."""
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def encode_many(self, texts: Iterable[str]) -> list[list[int]]:
        """The ids of each of many texts."""
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [list(encoding.ids) for encoding in encodings]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some ids, special tokens included."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False))


def byte_level_alphabet() -> dict[str, int]:
    """The character that stands for each byte in a byte-level vocabulary, by character.

    Bytes that print in Latin-1 stand for themselves, the others for the characters from U+0100 on, in order.
    """
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printing)]
    pairs = [(chr(byte), byte) for byte in printing]
    return dict(pairs + [(chr(0x100 + number), byte) for number, byte in enumerate(others)])


_TO_LATIN = str.maketrans({char: chr(byte) for char, byte in byte_level_alphabet().items()})
_ALPHABET = frozenset(byte_level_alphabet())


def _byte_level_bytes(text: str, suffix: str | None) -> bytes:
    ending = b""
    if suffix and text.endswith(suffix):
        text, ending = text[: -len(suffix)], b" "
    if not _ALPHABET.issuperset(text):
        return text.encode()
    return text.translate(_TO_LATIN).encode("latin-1") + ending
