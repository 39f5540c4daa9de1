"""The largest elements of a change, and where they are.

Exactly k = max(1, round(density N)) elements are kept: the largest absolute values, and of equal ones those of lower
index. Their values are bfloat16 numbers in byte planes, or codes of a Lloyd-Max codebook of 2, 4 or 16 levels; others
are 0.
The relative error of the 20 % largest of a Gaussian change is 0.592, of a Laplacian one 0.468.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.deltas.codecs.applied import on_base
from weightsmith.deltas.codecs.codebook import Codebook, fitted_codebook
from weightsmith.deltas.codecs.codec import CodecChoice, Encoded, Parameters, StoredChange
from weightsmith.deltas.codecs.coded_streams import BlockStream, joined, stored_sizes
from weightsmith.deltas.codecs.codes import code_bits, packed_codes, unpacked_codes
from weightsmith.deltas.codecs.delta_codec import BINS, Change, Delta, histogram_of
from weightsmith.deltas.codecs.planes import joined_planes, longest_piece, plane_pieces
from weightsmith.deltas.codecs.positions import packed_positions, unpacked_positions
from weightsmith.errors import UsageError
from weightsmith.tensors import DType, LazyTensor

_STREAM = ("kept", "table")
# Kinds of values and the levels of their codebooks; 2 levels are the signs and the means of either sign.
_LEVELS = {"bfloat16": 0, "lloyd1": 2, "lloyd2": 4, "lloyd4": 16}
# What is tried, from few bytes to many. Signs alone win in the middle: places cost more there than values.
_TRIED = (
    (0.001, "bfloat16"),
    (0.01, "lloyd4"),
    (0.02, "lloyd1"),
    (0.05, "lloyd1"),
    (0.1, "lloyd1"),
    (0.2, "lloyd1"),
    (0.3, "lloyd1"),
    (0.5, "lloyd2"),
)


class Sparse:
    """The k largest elements."""

    name = "sparse"

    def choices(self, delta: Delta) -> Sequence[CodecChoice]:
        """Several densities, each with the kind of values that suits it."""
        return [CodecChoice(self.name, {"density": d, "values": kind}) for d, kind in _TRIED]

    def encode(self, delta: Delta, settings: Parameters) -> Encoded:
        """Settings: density in (0, 1], and values, "lloyd1", "lloyd2", "lloyd4" (default) or "bfloat16"."""
        density, kind = settings.get("density"), settings.get("values", "lloyd4")
        if not isinstance(density, (int, float)) or not 0 < density <= 1:
            raise UsageError(f"{density!r} is no density: give a number above 0 and up to 1.")
        if kind not in _LEVELS:
            raise UsageError(f"{kind!r} is no kind of values: use one of {', '.join(_LEVELS)}.")
        count = min(delta.numel, max(1, round(density * delta.numel)))
        kept = functools.partial(_largest, delta, *_threshold(delta, count))
        parts: dict[str, NDArray[Any]] = {}
        pack = _exact_pieces
        if _LEVELS[kind]:
            histogram = histogram_of(values for _, values, _ in kept())
            codebook = fitted_codebook(histogram, _LEVELS[kind])
            parts["levels"] = codebook.levels
            pack = functools.partial(_coded_pieces, codebook)
        counts: list[int] = []
        blocks: list[list[bytes]] = []
        for places, values, size in kept():
            counts.append(values.size)
            blocks.append([packed_positions(places, size), *pack(values)])
        parts["kept"], lengths = joined(blocks, _columns(kind))
        parts["table"] = np.column_stack([np.array(counts, np.uint32), lengths])
        return Encoded(self.name, {"values": kind}, parts)

    def decoded(self, stored: StoredChange) -> LazyTensor:
        """base + the kept values at their places."""
        kind = stored.choice("values", tuple(_LEVELS))
        levels = None
        if _LEVELS[kind]:
            levels = stored.array("levels", DType.FLOAT32, (_LEVELS[kind],))
        sizes = stored_sizes(stored)

        def limits(table: NDArray[np.int64]) -> NDArray[np.int64]:
            kept = table[:, 0]
            if (kept > sizes).any():
                raise stored.damaged("keeps more elements than there are")
            bitmaps = (sizes + 7) // 8
            if levels is None:
                return np.stack([bitmaps, longest_piece(kept), longest_piece(kept)], axis=1)
            return np.stack([bitmaps, code_bits(levels.size) * ((kept + 7) // 8)], axis=1)

        stream = BlockStream(stored, _STREAM, (1, _columns(kind)), len(sizes), limits)

        def change(number: int) -> NDArray[np.float32]:
            kept = int(stream.counts()[number, 0])
            where, *pieces = stream.block(number)
            count = int(sizes[number])
            places = unpacked_positions(where, kept, count)
            values = _values(pieces, kept, levels)
            if places is None or values is None:
                raise stored.damaged(f"cannot be decompressed in block {number}")
            found = np.zeros(count, np.float32)
            found[places] = values
            return found

        return on_base(stored, change)


Kept = tuple[NDArray[np.int64], Change, int]


def _largest(delta: Delta, threshold: np.uint32, ties: int) -> Iterator[Kept]:
    """By block the places and values of the elements beyond the threshold and of the first ones at it; its size."""
    for block in delta.blocks():
        sizes = _magnitudes(block)
        kept = sizes > threshold
        equal = np.flatnonzero(sizes == threshold)[:ties]
        ties -= equal.size
        kept[equal] = True
        places = np.flatnonzero(kept).astype(np.int64)
        yield places, block[places], block.size


def _threshold(delta: Delta, count: int) -> tuple[np.uint32, int]:
    """The bits of the `count`-th largest absolute value, and how many equal to it are kept."""
    counts, lower = np.zeros(BINS, np.int64), np.zeros(BINS, np.int64)
    for block in delta.blocks():
        counts += np.bincount(_magnitudes(block) >> 16, minlength=BINS)
    upper, beyond = _cut(counts, count)
    for block in delta.blocks():
        sizes = _magnitudes(block)
        lower += np.bincount(sizes[sizes >> 16 == upper] & 0xFFFF, minlength=BINS)
    low, ties = _cut(lower, beyond)
    return np.uint32(upper << 16 | low), ties


def _cut(counts: NDArray[np.int64], wanted: int) -> tuple[int, int]:
    """The bin that holds the `wanted`-th element from above, and how many of that bin it takes."""
    above = np.cumsum(counts[::-1])
    at = int(np.searchsorted(above, wanted))
    return BINS - 1 - at, int(wanted - (above[at] - counts[::-1][at]))


def _magnitudes(block: Change) -> NDArray[np.uint32]:
    sizes: NDArray[np.uint32] = block.view(np.uint32) & np.uint32(0x7FFFFFFF)
    return sizes


def _columns(kind: str) -> int:
    """Pieces of a block: positions, then two byte planes or one piece of codes."""
    return 2 if _LEVELS[kind] else 3


def _exact_pieces(values: Change) -> list[bytes]:
    words = _to_bfloat16(values)
    return plane_pieces(words << np.uint16(1) | words >> np.uint16(15))


def _coded_pieces(codebook: Codebook, values: Change) -> list[bytes]:
    return [packed_codes(codebook.codes(values), codebook.levels.size)]


def _values(
    pieces: list[NDArray[np.uint8]], kept: int, levels: NDArray[np.float32] | None
) -> Change | None:
    if levels is None:
        turned = joined_planes(pieces, kept, 2)
        if turned is None:
            return None
        words = turned >> np.uint16(1) | turned << np.uint16(15)
        values: Change = (words.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return values
    codes = unpacked_codes(pieces[0], kept, levels.size)
    if codes is None:
        return None
    found: Change = levels[codes]
    return found


def _to_bfloat16(values: Change) -> NDArray[np.uint16]:
    """The nearest bfloat16, of two the one with an even last bit, never an infinite one."""
    bits = values.view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    is_over = rounded & 0x7FFF == 0x7F80
    words: NDArray[np.uint16] = (rounded - is_over).astype(np.uint16)
    return words
