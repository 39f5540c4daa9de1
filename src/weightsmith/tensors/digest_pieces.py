"""Pieces: the fixed units of a tensor for digests and sums.

A piece depends on the shape alone - never on tile size, threads or dtype - so that digests and
fixed-order sums come out the same however a tensor is streamed. A piece is whole rows where rows
are short enough.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

PIECE_TARGET = 2**18


def piece_elements(shape: Sequence[int]) -> int:
    """Elements per piece: ceil(2^18 / row length) whole rows; 2^18 elements for longer rows or
    fewer than two axes.
    """
    if len(shape) < 2:
        return PIECE_TARGET
    row = shape[-1]
    if row == 0 or row > PIECE_TARGET:
        return PIECE_TARGET
    return -(-PIECE_TARGET // row) * row


def pieces(shape: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The element ranges [start, stop) of all pieces in order; the last may be shorter."""
    numel = math.prod(shape)
    size = piece_elements(shape)
    for start in range(0, numel, size):
        yield start, min(start + size, numel)
