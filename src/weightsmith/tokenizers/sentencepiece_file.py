"""Sentencepiece model files: the few fields that decide how text is cut, read from the protobuf's wire format."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from weightsmith.errors import TokenizerError
from weightsmith.tensors import shown
from weightsmith.tokenizers.tokenizer_settings import read_bytes

UNIGRAM, BPE = 1, 2
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Field numbers of sentencepiece_model.proto.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_MODEL_TYPE, _SUFFIX, _BYTE_FALLBACK = 3, 24, 35
_UNK_ID, _BOS_ID, _EOS_ID, _PAD_ID = 40, 41, 42, 43
_CHARSMAP, _DUMMY_PREFIX, _EXTRA_SPACES, _ESCAPE = 2, 3, 4, 5


class SentencePiece(NamedTuple):
    """One piece of the model: its text, log probability or rank, and type (`NORMAL`, `CONTROL`...)."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True, slots=True)
class SentencepieceModel:
    """A sentencepiece model; an id of a special piece that is absent is -1."""

    pieces: tuple[SentencePiece, ...]
    algorithm: int
    byte_fallback: bool
    unk_id: int
    bos_id: int
    eos_id: int
    pad_id: int
    charsmap: bytes
    adds_prefix: bool
    joins_spaces: bool


_FLOAT = struct.Struct("<f")


class _Damaged(Exception):
    """Carries the reason out of the wire format's reader."""


Field = tuple[int, int, int, bytes]


def read_sentencepiece(file: Path) -> SentencepieceModel:
    """Read a model file; raises TokenizerError for damaged ones and for settings that cannot be reproduced."""
    try:
        return _read(read_bytes(file), shown(file))
    except (_Damaged, UnicodeDecodeError, struct.error, IndexError) as problem:
        raise TokenizerError(
            f"{shown(file)} is not a sentencepiece model ({problem}): fetch it again."
        ) from None


def _read(data: bytes, where: str) -> SentencepieceModel:
    pieces: list[SentencePiece] = []
    trainer: dict[int, tuple[int, bytes]] = {}
    normalizer: dict[int, tuple[int, bytes]] = {}
    for number, _, value, body in _fields(data):
        if number == _PIECES:
            pieces.append(_piece(body))
        elif number == _TRAINER:
            trainer |= {field: (value, body) for field, _, value, body in _fields(body)}
        elif number == _NORMALIZER:
            normalizer |= {field: (value, body) for field, _, value, body in _fields(body)}
    if not pieces:
        raise _Damaged("it holds no pieces")

    def number_of(spec: dict[int, tuple[int, bytes]], field: int, default: int) -> int:
        value = spec[field][0] if field in spec else default
        return value - (1 << 64) if value >= 1 << 63 else value

    if number_of(trainer, _SUFFIX, 0) or not number_of(normalizer, _ESCAPE, 1):
        raise TokenizerError(
            f"{where} keeps spaces in a way that the tokenizers library cannot reproduce: save the tokenizer with "
            "transformers, so that the folder has a tokenizer.json."
        )
    return SentencepieceModel(
        pieces=tuple(pieces),
        algorithm=number_of(trainer, _MODEL_TYPE, UNIGRAM),
        byte_fallback=bool(number_of(trainer, _BYTE_FALLBACK, 0)),
        unk_id=number_of(trainer, _UNK_ID, 0),
        bos_id=number_of(trainer, _BOS_ID, 1),
        eos_id=number_of(trainer, _EOS_ID, 2),
        pad_id=number_of(trainer, _PAD_ID, -1),
        charsmap=normalizer[_CHARSMAP][1] if _CHARSMAP in normalizer else b"",
        adds_prefix=bool(number_of(normalizer, _DUMMY_PREFIX, 1)),
        joins_spaces=bool(number_of(normalizer, _EXTRA_SPACES, 1)),
    )


def _piece(body: bytes) -> SentencePiece:
    return _usual_piece(body) or _any_piece(body)


def _usual_piece(body: bytes) -> SentencePiece | None:
    """A short piece as sentencepiece writes it, a text, a score and perhaps a type: nearly all, so read at once."""
    length = body[1] if len(body) > 2 else 0x80
    rest = body[2 + length :]
    if body[0] != 0x0A or not 0 < length < 0x80 or rest[:1] != b"\x15" or len(rest) not in (5, 7):
        return None
    kind = rest[6] if len(rest) == 7 else NORMAL
    (score,) = _FLOAT.unpack(rest[1:5])
    if not math.isfinite(score) or not NORMAL <= kind <= BYTE or rest[5:6] not in (b"", b"\x18"):
        return None
    return SentencePiece(body[2 : 2 + length].decode("utf-8"), score, kind)


def _any_piece(body: bytes) -> SentencePiece:
    text, score, kind = "", 0.0, NORMAL
    for number, wire, value, content in _fields(body):
        if number == 1 and wire == _BYTES:
            text = content.decode("utf-8")
        elif number == 2 and wire == _FIXED32:
            (score,) = _FLOAT.unpack(content)
        elif number == 3 and wire == _VARINT:
            kind = value
    if not text or not math.isfinite(score) or not NORMAL <= kind <= BYTE:
        raise _Damaged("a piece has no text, no finite score or an unknown type")
    return SentencePiece(text, score, kind)


def _fields(data: bytes) -> Iterator[Field]:
    """(number, wire type, number if varint, bytes if not) of each field of a message."""
    position, end = 0, len(data)
    while position < end:
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, position = _varint(data, position)
            yield number, wire, value, b""
            continue
        if wire == _BYTES:
            length, position = _varint(data, position)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise _Damaged(f"a field has the wire type {wire}")
        if length > end - position:
            raise _Damaged("it ends in the middle of a field")
        yield number, wire, 0, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    byte = data[position]
    if byte < 0x80:
        return byte, position + 1
    value, shift = byte & 0x7F, 7
    while True:
        position += 1
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position + 1
        shift += 7
        if shift > 63:
            raise _Damaged("a number is longer than ten bytes")
