"""Columns: a tensor seen as matrices, and sums over their columns that do not depend on how it is streamed.

A *run* is what one piece and one matrix have in common. Every run gives a vector, its elements added row after row;
the vectors of a matrix are added up in the order of its runs. Both depend on the shape alone.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weightsmith.errors import UsageError
from weightsmith.tensors import piece_elements

# Vectors that may wait for those before them, and seconds that a thread waits for these.
_MOST_WAITING, _PATIENCE = 8, 2.0
_STARTS = {"total": 0.0, "dot": 0.0, "peak": -math.inf}


@dataclass(frozen=True, slots=True)
class Columns:
    """A tensor as matrices of `rows` x `width`, one after the other; each of their columns is reduced to a number.

    With a width of 1 every stretch of `rows` elements is one column: so rows are reduced whose numbers a function
    wants to see together.
    """

    rows: int
    width: int

    @property
    def elements(self) -> int:
        """Of one matrix."""
        return self.rows * self.width

    def count(self, numel: int) -> int:
        """How many columns a tensor of `numel` elements has."""
        return numel // self.elements * self.width if self.elements else 0

    def tile_bytes(self, elements: int, shape: Sequence[int]) -> int:
        """Bytes that the numbers of a tile of a tensor take, before they are added up."""
        runs = -(-elements // piece_elements(shape)) + -(-elements // max(1, self.elements))
        return 8 * self.width * runs

    def bounds(self, start: int, count: int, piece: int) -> NDArray[np.int64]:
        """Where the runs of a tile begin, and its end."""
        stop = start + count
        pieces = np.arange(start, stop, piece)
        matrices = np.arange(-(-start // self.elements) * self.elements, stop, self.elements)
        return np.append(np.union1d(pieces, matrices), stop)


@dataclass(frozen=True, slots=True)
class ColumnPart:
    """One tile's numbers: for each run, one per column of a matrix; `start` and `count` are the tile's."""

    start: int
    count: int
    sums: NDArray[np.float64]


def column_view(columns: Columns, shape: Sequence[int]) -> tuple[int, int, int]:
    """For the native machine: elements of a matrix, its width, and their least common multiple with a piece."""
    both = math.lcm(columns.elements, piece_elements(shape)) if columns.elements else 0
    return columns.elements, columns.width, min(both, 1 << 62)


class ColumnSums:
    """Adds up the tiles' numbers as they come, in whatever order; thread-safe.

    Raises UsageError for a tensor that is not made of whole matrices of the view.
    """

    def __init__(self, op: str, columns: Columns, shape: Sequence[int]) -> None:
        numel = math.prod(shape)
        if numel and (not columns.elements or numel % columns.elements):
            raise UsageError(
                f"A tensor of shape {list(shape)} is not made of matrices of {columns.rows} x {columns.width}."
            )
        self._join = np.maximum if op == "peak" else np.add
        self._columns = columns
        self._piece = piece_elements(shape)
        matrices = columns.count(numel) // columns.width if columns.width else 0
        self._found = np.full((matrices, columns.width), _STARTS[op])
        self._waiting: dict[tuple[int, int], NDArray[np.float64]] = {}
        self._reached: dict[int, int] = {}
        self._turn = threading.Condition()

    def admit(self, part: ColumnPart) -> None:
        """Take a tile's numbers; where many wait already for a tile that is late, wait for it too."""
        size = self._columns.elements
        bounds = self._columns.bounds(part.start, part.count, self._piece)
        first, last = bounds[:-1], bounds[1:]
        matrix = first // size
        whole = last - first == size
        with self._turn:
            self._found[matrix[whole]] = part.sums[whole]
            parts = [(int(matrix[i]), int(first[i]), i) for i in np.flatnonzero(~whole)]
            if parts:
                # Tiles are begun in their order, so the one that is late is at work, unless its thread has failed.
                self._turn.wait_for(lambda: self._has_room(*parts[0][:2]), _PATIENCE)
            for number, start, i in parts:
                self._add(number, start, part.sums[i])
            self._turn.notify_all()

    def _has_room(self, matrix: int, start: int) -> bool:
        at = self._reached.get(matrix, matrix * self._columns.elements)
        return start == at or len(self._waiting) < _MOST_WAITING

    def _add(self, matrix: int, start: int, sums: NDArray[np.float64]) -> None:
        """Add a run's vector when those before it are there."""
        self._waiting[matrix, start] = sums
        begin = matrix * self._columns.elements
        at = self._reached.get(matrix, begin)
        while (found := self._waiting.pop((matrix, at), None)) is not None:
            with np.errstate(all="ignore"):
                self._found[matrix] = (
                    found if at == begin else self._join(self._found[matrix], found)
                )
            at = (at // self._piece + 1) * self._piece
        self._reached[matrix] = at

    @property
    def result(self) -> NDArray[np.float64]:
        """One number for each column, matrix after matrix."""
        return self._found.reshape(-1)
