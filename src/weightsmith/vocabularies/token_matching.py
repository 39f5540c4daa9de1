"""Which token of one vocabulary is which of another: by the text that is stored, or by what it stands for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from weightsmith.tokenizers import TokenKind, Vocabulary
from weightsmith.vocabularies.missing import Pieces
from weightsmith.vocabularies.token_tables import Index

EXACT = "exact"
BYTES = "bytes"


def matched(target: Vocabulary, own: Vocabulary, match: str) -> Index:
    """The id in `own` for each id of `target`, -1 where it lacks the token or the target has none; (target.size,).

    `exact` compares stored texts. `bytes` compares what tokens stand for ("Ġthe" and "▁the" are one token), and takes
    special tokens that have the same role, such as the end of text, for the same where no text agrees.
    """
    found = np.full(target.size, -1, np.int64)
    places = np.fromiter(target.ids.values(), np.int64, len(target.ids))
    if own.ids == target.ids:
        found[places] = places
        return found
    get = own.ids.get
    rows = np.fromiter((get(text, -1) for text in target.ids), np.int64, len(target.ids))
    if match == BYTES:
        lacking = np.flatnonzero(rows < 0)
        texts = list(target.ids)
        keys = own.keys
        for i in lacking.tolist():
            rows[i] = keys.get(target.key(target.token(texts[i])), -1)
        _match_roles(target, own, places, rows)
    found[places] = rows
    return found


def _match_roles(target: Vocabulary, own: Vocabulary, places: Index, rows: Index) -> None:
    known = set(rows.tolist())
    for role, index in target.special_ids.items():
        place = np.flatnonzero(places == index)
        theirs = own.special_ids.get(role)
        if theirs is not None and theirs not in known and (rows[place] < 0).all():
            rows[place] = theirs


def default_match(target: Vocabulary, own: Vocabulary, *, native: bool) -> str:
    """`bytes` in native recipes where the tokenizers are of different kinds, else `exact`, as in mergekit."""
    return BYTES if native and target.model != own.model else EXACT


def pieces_of(target: Vocabulary, ids: Sequence[int], own: Vocabulary, rows: int) -> Pieces:
    """The ids (below `rows`) of the tokens that `own` cuts each token of `target` into; empty where it cannot."""
    texts = target.texts
    keys = [target.key(target.token(texts[i])) for i in ids]
    readable = [_text_of(kind, data) for kind, data in keys]
    plain = own.encode_many([text or "" for text in readable])
    bare = own.encode_many([(text or "").removeprefix(" ") for text in readable])
    lists = []
    for (_, data), text, first, second in zip(keys, readable, plain, bare, strict=True):
        if text is None:
            chosen = _bytes_of(data, own)
        else:
            chosen = (
                first if _joined(first, own) == data or _joined(second, own) != data else second
            )
        lists.append(_usable(chosen, own, rows))
    return Pieces.of(lists)


def pieces_without(vocabulary: Vocabulary, ids: Sequence[int], rows: int) -> Pieces:
    """Shorter tokens of the same vocabulary that make up each token: the longest that fits, again and again.

    For tokens that the tokenizer would not cut, to measure how well their pieces speak for them.
    """
    texts = vocabulary.texts
    keys = vocabulary.keys
    longest = max((len(data) for _, data in keys), default=1)
    lists = []
    for index in ids:
        kind, data = vocabulary.key(vocabulary.token(texts[index]))
        lists.append(_greedy(data, vocabulary, rows, longest) if kind is TokenKind.NORMAL else [])
    return Pieces.of(lists)


def _greedy(data: bytes, vocabulary: Vocabulary, rows: int, longest: int) -> list[int]:
    found: list[int] = []
    start = 0
    while start < len(data):
        most = min(longest, len(data) - start, len(data) - 1)
        for length in range(most, 0, -1):
            index = vocabulary.keys.get((TokenKind.NORMAL, data[start : start + length]))
            if index is not None and index < rows:
                found.append(index)
                start += length
                break
        else:
            return []
    return found


def _text_of(kind: TokenKind, data: bytes) -> str | None:
    try:
        return data.decode() if kind is not TokenKind.UNKNOWN else None
    except UnicodeDecodeError:
        return None


def _bytes_of(data: bytes, own: Vocabulary) -> list[int]:
    found = [own.keys.get((TokenKind.NORMAL, data[i : i + 1])) for i in range(len(data))]
    return [index for index in found if index is not None] if None not in found else []


def _joined(ids: Sequence[int], own: Vocabulary) -> bytes:
    texts = own.texts
    return b"".join(own.key(own.token(texts[index]))[1] for index in ids)


def _usable(ids: Sequence[int], own: Vocabulary, rows: int) -> list[int]:
    unknown = None if own.unknown is None else own.ids[own.unknown]
    return [index for index in ids if index < rows and index != unknown]
