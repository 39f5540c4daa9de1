"""Which elements of a block are kept, as gaps under Huffman codes or as a bitmap.

    gaps    the number of elements passed over before each kept one; 255 stands for 255 of them and goes on
    bitmap  one bit per element, lowest first

A piece as long as the bitmap is one; it is taken where the gaps would not be shorter, which is at densities above 0.4.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from weightsmith.deltas.bits import packed_bytes
from weightsmith.deltas.codecs.coded_streams import deflated, inflated

_GO_ON = 255
# Above this share of kept elements a bitmap is never longer.
_DENSE = 0.4


def packed_positions(positions: NDArray[np.int64], count: int) -> bytes:
    """The piece that says which of `count` elements are kept; positions rise."""
    if positions.size <= _DENSE * count:
        gaps = deflated(_gap_bytes(positions), zlib.Z_HUFFMAN_ONLY)
        if len(gaps) < packed_bytes(count):
            return gaps
    kept = np.zeros(count, np.bool_)
    kept[positions] = True
    return np.packbits(kept, bitorder="little").tobytes()


def unpacked_positions(piece: NDArray[np.uint8], kept: int, count: int) -> NDArray[np.int64] | None:
    """The `kept` positions of a piece among `count` elements; None if it is damaged."""
    if piece.size == packed_bytes(count):
        bits = np.unpackbits(piece, bitorder="little")
        found = np.flatnonzero(bits).astype(np.int64)
    else:
        data = inflated(piece, kept + count // _GO_ON)
        if data is None:
            return None
        found = _positions_of(np.frombuffer(data, np.uint8))
    if found.size != kept or (kept and found[-1] >= count):
        return None
    return found


def _gap_bytes(positions: NDArray[np.int64]) -> NDArray[np.uint8]:
    gaps = np.diff(positions, prepend=-1) - 1
    longer, rest = np.divmod(gaps, _GO_ON)
    ends = np.cumsum(longer + 1)
    data = np.full(int(ends[-1]) if ends.size else 0, _GO_ON, np.uint8)
    data[ends - 1] = rest
    return data


def _positions_of(data: NDArray[np.uint8]) -> NDArray[np.int64]:
    is_end = data != _GO_ON
    passed = np.cumsum(data.astype(np.int64) + is_end)
    found: NDArray[np.int64] = passed[is_end] - 1
    return found
