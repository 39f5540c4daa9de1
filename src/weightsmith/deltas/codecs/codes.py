"""Codes: a small whole number per element, 0 to levels - 1, packed.

A block of n codes is stored as one piece, the shorter of
    plain     bit planes of ceil(n / 8) bytes each, lowest bit first; for 3 levels five codes to a byte
    deflated  as many codes as fit a byte side by side, the first lowest, under Huffman codes (`zlib.Z_HUFFMAN_ONLY`)

A piece as long as the plain form is plain.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from weightsmith.deltas.codecs.coded_streams import deflated, inflated

Codes = NDArray[np.uint8]


def code_bits(levels: int) -> int:
    """Whole bits of a code."""
    return (levels - 1).bit_length()


def codes_per_byte(levels: int) -> int:
    """Codes that fit a byte side by side."""
    return 5 if levels == 3 else 8 // code_bits(levels)


def plain_bytes(count: int, levels: int) -> int:
    """Bytes of so many codes without compression."""
    return -(-count // 5) if levels == 3 else code_bits(levels) * -(-count // 8)


def packed_codes(codes: Codes, levels: int) -> bytes:
    """The piece that holds these codes."""
    grouped = _grouped(codes, levels)
    if levels > 2:
        small = deflated(grouped, zlib.Z_HUFFMAN_ONLY)
        if len(small) < plain_bytes(codes.size, levels):
            return small
    return grouped.tobytes() if levels == 3 else _bit_planes(codes, levels)


def unpacked_codes(piece: NDArray[np.uint8], count: int, levels: int) -> Codes | None:
    """The `count` codes of a piece; None if it is damaged."""
    if piece.size == plain_bytes(count, levels):
        if levels != 3:
            return _from_bit_planes(piece, count, levels)
        grouped: NDArray[np.uint8] = piece
    else:
        due = -(-count // codes_per_byte(levels))
        data = inflated(piece, due)
        if data is None or len(data) != due:
            return None
        grouped = np.frombuffer(data, np.uint8)
    if levels == 3 and grouped.size and grouped.max() >= 3**5:
        return None
    return _ungrouped(grouped, levels).reshape(-1)[:count]


def _weights(levels: int) -> list[int]:
    return [levels**place for place in range(codes_per_byte(levels))]


def _grouped(codes: Codes, levels: int) -> NDArray[np.uint8]:
    weights = _weights(levels)
    if len(weights) == 1:
        return codes
    padded = np.zeros(-(-codes.size // len(weights)) * len(weights), np.uint8)
    padded[: codes.size] = codes
    rows = padded.reshape(-1, len(weights))
    grouped: NDArray[np.uint8] = rows[:, 0].copy()
    for place, weight in enumerate(weights[1:], 1):
        grouped += rows[:, place] * np.uint8(weight)
    return grouped


def _ungrouped(grouped: NDArray[np.uint8], levels: int) -> Codes:
    values = np.arange(256, dtype=np.uint16)[:, None]
    table = (values // np.array(_weights(levels), np.uint16) % levels).astype(np.uint8)
    codes: Codes = table[grouped]
    return codes


def _bit_planes(codes: Codes, levels: int) -> bytes:
    planes = [
        np.packbits((codes >> bit) & 1, bitorder="little") for bit in range(code_bits(levels))
    ]
    return b"".join(plane.tobytes() for plane in planes)


def _from_bit_planes(piece: NDArray[np.uint8], count: int, levels: int) -> Codes:
    codes = np.zeros(count, np.uint8)
    for bit, plane in enumerate(piece.reshape(code_bits(levels), -1)):
        codes |= np.unpackbits(plane, bitorder="little", count=count) << np.uint8(bit)
    return codes
