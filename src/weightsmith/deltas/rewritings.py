"""What becomes of a matrix row by row where the change depends on the rows themselves: scaled, modulated, rotated.

A tensor of more than two axes counts as the matrix of its first axis by all others. Rows are float64, as those of
changes are. No row depends on another, so a tile of any rows is computed from these alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from weightsmith.deltas.changes import Change, Matrix


@runtime_checkable
class Rewriting(Protocol):
    """A function of the rows of a matrix."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        ...

    def rewritten(self, rows: Matrix, start: int) -> Matrix:
        """What becomes of the rows from `start` on, `rows` being what they are."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Scaled:
    """diag(by_row) W diag(by_column).

    `by_column` has a row of factors for each of as many groups as its length; the groups are equally many rows, one
    group behind another (those of a convolution in groups).
    """

    shape: tuple[int, int]
    by_row: Matrix | None = None
    by_column: Matrix | None = None

    def rewritten(self, rows: Matrix, start: int) -> Matrix:
        """The rows from `start` on, scaled."""
        if self.by_row is not None:
            rows = rows * self.by_row[start : start + len(rows), None]
        if self.by_column is not None:
            of_each = self.shape[0] // len(self.by_column)
            rows = rows * self.by_column[np.arange(start, start + len(rows)) // of_each]
        return rows


@dataclass(frozen=True, slots=True, eq=False)
class Modulated:
    """W + W o D, D being another change, with which W is multiplied by element."""

    change: Change

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.change.shape

    def rewritten(self, rows: Matrix, start: int) -> Matrix:
        """The rows from `start` on, modulated."""
        return rows + rows * self.change.rows(start, start + len(rows))


@dataclass(frozen=True, slots=True, eq=False)
class BlockRotation:
    """P D P^T with a block-diagonal D, by which rows are multiplied from the right.

    `blocks` are the blocks of D (blocks x size x size; a single one stands for all), `order` is p of
    (x P)[p[i]] = x[i], None for the identity.
    """

    blocks: Matrix
    order: NDArray[np.int64] | None = None

    def of(self, rows: Matrix) -> Matrix:
        """rows @ P D P^T."""
        count, columns = rows.shape
        if self.order is not None:
            ordered = np.empty_like(rows)
            ordered[:, self.order] = rows
            rows = ordered
        size = self.blocks.shape[-1]
        pieces = rows.reshape(count, columns // size, size).transpose(1, 0, 2) @ self.blocks
        turned: Matrix = pieces.transpose(1, 0, 2).reshape(count, columns)
        return turned if self.order is None else turned[:, self.order]


@dataclass(frozen=True, slots=True, eq=False)
class Rotated:
    """diag(by_row) W R_1 R_2 ..."""

    shape: tuple[int, int]
    rotations: Sequence[BlockRotation]
    by_row: Matrix | None = None

    def rewritten(self, rows: Matrix, start: int) -> Matrix:
        """The rows from `start` on, rotated."""
        count = len(rows)
        for rotation in self.rotations:
            rows = rotation.of(rows)
        return rows if self.by_row is None else rows * self.by_row[start : start + count, None]


@dataclass(frozen=True, slots=True, eq=False)
class BlockAffine:
    """W_ij + W_ij B_i + B_i for every block W_ij of size x size, B_i being that of its rows.

    `blocks` are the B_i (rows / size x size x size).
    """

    shape: tuple[int, int]
    blocks: Matrix

    def rewritten(self, rows: Matrix, start: int) -> Matrix:
        """The rows from `start` on, changed block by block."""
        size = self.blocks.shape[-1]
        block, within = np.divmod(np.arange(start, start + len(rows)), size)
        pieces = rows.reshape(len(rows), -1, size)
        found: Matrix = pieces + pieces @ self.blocks[block] + self.blocks[block, within][:, None]
        return found.reshape(rows.shape)
