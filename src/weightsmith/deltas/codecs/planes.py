"""Words as byte planes: byte j of every word in plane j, each plane compressed by itself.

    piece of a plane    empty                all bytes are 0
                        0, bytes             the bytes as they are
                        1, deflated          raw deflate with `zlib.Z_RLE`
                        2, k, p, kept, rest  k bytes are not 0: their positions in p bytes (`positions`), then the bytes
                                             themselves under Huffman codes; k and p are little-endian, of 4 bytes

whichever is shortest. Runs of zeros are what small changes leave in upper planes; positions take up to a third less
where zeros are many but their runs short.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from weightsmith.deltas.codecs.coded_streams import deflated, inflated
from weightsmith.deltas.codecs.positions import packed_positions, unpacked_positions
from weightsmith.tensors import WORDS

_RAW, _RUNS, _PLACES = 0, 1, 2
_HEAD = struct.Struct("<BII")
# Bits per byte from which on trying to compress is a waste: Huffman codes cannot win more than they cost.
_DENSE = 7.97
# One byte of so many is looked at for that.
_SAMPLED = 4
# The share of bytes that are not 0 up to which positions are tried.
_SPARSE = 0.3


def plane_pieces(words: NDArray[np.unsignedinteger]) -> list[bytes]:
    """The planes of a block, lowest byte first."""
    rows = words.view(np.uint8).reshape(words.size, words.itemsize)
    return [_piece(np.ascontiguousarray(rows[:, j])) for j in range(words.itemsize)]


def joined_planes(
    pieces: list[NDArray[np.uint8]], count: int, size: int
) -> NDArray[np.unsignedinteger] | None:
    """The `count` words of `size` bytes whose planes these are; None if a piece is damaged."""
    words = np.empty(count, WORDS[size])
    rows = words.view(np.uint8).reshape(count, size)
    for j, piece in enumerate(pieces):
        plane = _plane(piece, count)
        if plane is None:
            return None
        rows[:, j] = plane
    return words


def longest_piece(count: NDArray[np.int64]) -> NDArray[np.int64]:
    """The most bytes that the piece of a plane of so many bytes has."""
    return count + 1


def _piece(plane: NDArray[np.uint8]) -> bytes:
    if not plane.any():
        return b""
    found = bytes([_RAW]) + plane.tobytes()
    histogram = np.bincount(plane[::_SAMPLED], minlength=256)
    if _entropy(histogram) >= _DENSE:
        return found
    tried = [found, bytes([_RUNS]) + deflated(plane, zlib.Z_RLE)]
    if histogram[1:].sum() <= _SPARSE * histogram.sum():
        tried.append(_with_places(plane))
    return min(tried, key=len)


def _with_places(plane: NDArray[np.uint8]) -> bytes:
    kept = np.flatnonzero(plane)
    places = packed_positions(kept, plane.size)
    head = _HEAD.pack(_PLACES, kept.size, len(places))
    return head + places + deflated(plane[kept], zlib.Z_HUFFMAN_ONLY)


def _plane(piece: NDArray[np.uint8], count: int) -> NDArray[np.uint8] | None:
    if not piece.size:
        return np.zeros(count, np.uint8)
    if piece[0] == _PLACES:
        return _from_places(piece, count)
    if piece[0] == _RAW:
        return piece[1:] if piece.size == count + 1 else None
    return _inflated(piece[1:], count) if piece[0] == _RUNS else None


def _from_places(piece: NDArray[np.uint8], count: int) -> NDArray[np.uint8] | None:
    if piece.size < _HEAD.size:
        return None
    _, kept, size = _HEAD.unpack_from(piece.data)
    rest = piece[_HEAD.size :]
    if kept > count or size > rest.size:
        return None
    places = unpacked_positions(rest[:size], kept, count)
    values = _inflated(rest[size:], kept)
    if places is None or values is None:
        return None
    plane = np.zeros(count, np.uint8)
    plane[places] = values
    return plane


def _inflated(data: NDArray[np.uint8], count: int) -> NDArray[np.uint8] | None:
    found = inflated(data, count)
    return np.frombuffer(found, np.uint8) if found is not None and len(found) == count else None


def _entropy(histogram: NDArray[np.intp]) -> float:
    """Bits per byte of an order-0 code."""
    shares = histogram[histogram > 0] / histogram.sum()
    return float(-(shares * np.log2(shares)).sum())
