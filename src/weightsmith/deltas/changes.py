"""Changes of a matrix that are stored as factors: each gives any of its rows, and none is ever held dense.

A tensor of more than two axes counts as the matrix of its first axis by all others, as convolutions are adapted;
fused experts (experts x rows x columns) as the matrix of all their rows. Factors and rows are float64, so that the
order of sums is lost in the rounding to float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]


class Change(Protocol):
    """A matrix known by its rows."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        ...

    def rows(self, start: int, stop: int) -> Matrix:
        """Rows [start, stop), whole."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class LowRankChange:
    """scale * left @ right; left is rows x rank, right rank x columns. In LoRA's words B and A."""

    left: Matrix
    right: Matrix
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def rank(self) -> int:
        """The inner dimension."""
        return int(self.left.shape[1])

    def rows(self, start: int, stop: int) -> Matrix:
        """Rows [start, stop), whole."""
        product: Matrix = self.left[start:stop] @ self.right
        return product * self.scale


@dataclass(frozen=True, slots=True, eq=False)
class Hadamard:
    """scale * first o second, the product by element of two changes (LoHa)."""

    first: Change
    second: Change
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.first.shape

    def rows(self, start: int, stop: int) -> Matrix:
        """Rows [start, stop), whole."""
        return self.first.rows(start, stop) * self.second.rows(start, stop) * self.scale


@dataclass(frozen=True, slots=True, eq=False)
class Kronecker:
    """scale * left (x) right, the Kronecker product of two matrices (LoKr)."""

    left: Matrix
    right: Matrix
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        (m, n), (p, q) = self.left.shape, self.right.shape
        return m * p, n * q

    def rows(self, start: int, stop: int) -> Matrix:
        """Rows [start, stop), whole."""
        outer, inner = np.divmod(np.arange(start, stop), self.right.shape[0])
        product = self.left[outer][:, :, None] * self.right[inner][:, None, :]
        return product.reshape(stop - start, self.shape[1]) * self.scale


@dataclass(frozen=True, slots=True, eq=False)
class Stacked:
    """Changes below one another: those of fused experts, which lie one after the other in one tensor."""

    parts: tuple[Change, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]

    def rows(self, start: int, stop: int) -> Matrix:
        """Rows [start, stop), whole."""
        found, first = [np.empty((0, self.shape[1]))], 0
        for part in self.parts:
            last = first + part.shape[0]
            low, high = max(start, first), min(stop, last)
            if low < high:
                found.append(part.rows(low - first, high - first))
            first = last
        return np.concatenate(found)


@dataclass(frozen=True, slots=True, eq=False)
class Full:
    """A change that is stored whole."""

    matrix: Matrix
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.matrix.shape[0], self.matrix.shape[1]

    def rows(self, start: int, stop: int) -> Matrix:
        """Rows [start, stop), whole."""
        return self.matrix[start:stop] * self.scale


@dataclass(frozen=True, slots=True, eq=False)
class SparseChange:
    """A change of single elements: `values` at the `places`, counted through row by row, rising and each once."""

    shape: tuple[int, int]
    places: NDArray[np.int64]
    values: Matrix

    def rows(self, start: int, stop: int) -> Matrix:
        """Rows [start, stop), whole."""
        columns = self.shape[1]
        found = np.zeros((stop - start) * columns)
        low, high = np.searchsorted(self.places, [start * columns, stop * columns])
        found[self.places[low:high] - start * columns] = self.values[low:high]
        return found.reshape(-1, columns)


@dataclass(frozen=True, slots=True, eq=False)
class Weighted:
    """A weighted sum of changes of one shape."""

    parts: Sequence[tuple[float, Change]]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.parts[0][1].shape

    def rows(self, start: int, stop: int) -> Matrix:
        """Rows [start, stop), whole."""
        total = np.zeros((stop - start, self.shape[1]))
        for weight, part in self.parts:
            total += weight * part.rows(start, stop)
        return total


def transposed(change: Change) -> Change:
    """The same change of the transposed matrix; of `Stacked`, with each of its parts transposed.

    Raises TypeError for a form that is not of this module.
    """
    if isinstance(change, Stacked):
        return Stacked(tuple(transposed(part) for part in change.parts))
    if isinstance(change, LowRankChange):
        return LowRankChange(change.right.T, change.left.T, change.scale)
    if isinstance(change, Hadamard):
        return Hadamard(transposed(change.first), transposed(change.second), change.scale)
    if isinstance(change, Kronecker):
        return Kronecker(change.left.T, change.right.T, change.scale)
    if isinstance(change, Full):
        return replace(change, matrix=change.matrix.T)
    if isinstance(change, Weighted):
        return Weighted([(weight, transposed(part)) for weight, part in change.parts])
    raise TypeError(f"a {type(change).__name__} cannot be transposed")
