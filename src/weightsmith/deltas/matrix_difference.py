"""What a fine-tune adds to its base, read block of rows by block of rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weightsmith.deltas.changed import read_elements
from weightsmith.deltas.changes import Matrix
from weightsmith.errors import NonFiniteError
from weightsmith.graph import row_blocks
from weightsmith.tensors import LazyTensor, gaps


@dataclass(frozen=True, slots=True, eq=False)
class MatrixDifference:
    """fine-tune - base as a matrix, subtracted in float64 whatever types the tensors are stored in.

    `shape` is rows by columns; `first` is the element with which the matrix begins, for one expert of a fused tensor.
    """

    finetune: LazyTensor
    base: LazyTensor
    shape: tuple[int, int]
    first: int = 0

    def rows(self, start: int, stop: int) -> Matrix:
        """Rows [start, stop), whole."""
        after, before = self._both(start, stop)
        return after - before

    def measure(self) -> Measure:
        """Sums over all elements, in one pass; raises NonFiniteError where an element is NaN or infinite."""
        squares = noise = 0.0
        for start, stop in row_blocks(self.shape):
            after, before = self._both(start, stop)
            with np.errstate(invalid="ignore", over="ignore"):
                squares += float(np.square(after - before).sum())
            noise += float(np.square(gaps(after, self.finetune.dtype)).sum()) / 12.0
        if not np.isfinite(squares):
            raise NonFiniteError(
                f"{self.finetune.location} or {self.base.location} holds NaN or infinities, and so does their "
                "difference; repair that checkpoint."
            )
        return Measure(squares, noise)

    def _both(self, start: int, stop: int) -> tuple[Matrix, Matrix]:
        columns = self.shape[1]
        low, high = self.first + start * columns, self.first + stop * columns
        shape = (stop - start, columns)
        return read_elements(self.finetune, low, high).reshape(shape), read_elements(
            self.base, low, high
        ).reshape(shape)


@dataclass(frozen=True, slots=True)
class Measure:
    """||fine-tune - base||^2, and the expected square of what rounding the fine-tune to its type added to it.

    A rounding error is uniform over the gap of the type around an element, so its mean square is gap^2 / 12.
    """

    squares: float
    noise: float


def is_same(first: LazyTensor, second: LazyTensor) -> bool:
    """Whether two tensors of one shape have the same dtype and bytes."""
    if first.dtype is not second.dtype:
        return False
    return all(
        np.array_equal(_bytes(first, start, stop), _bytes(second, start, stop))
        for start, stop in row_blocks((first.numel, 1))
    )


def _bytes(tensor: LazyTensor, start: int, stop: int) -> NDArray[np.uint8]:
    found = np.empty((stop - start) * tensor.dtype.itemsize, np.uint8)
    tensor.read_into(start, stop, found.data)
    return found
