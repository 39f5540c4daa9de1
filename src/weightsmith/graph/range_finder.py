"""Leading singular directions of a matrix that is read some rows at a time (Halko, Martinsson and Tropp, 2011).

Q = orthonormal columns of D (D^T D)^q S        S the sketch, n x k, q power iterations
Q^T D = U s V^T                                 so D ~ (Q U) s V^T, and ||D - Q Q^T D||^2 = ||D||^2 - ||s||^2
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.errors import NonFiniteError
from weightsmith.graph.singular import Spectrum, exact

Matrix = NDArray[np.float64]
# Gives rows [start, stop) of a matrix, as floats of any width.
Rows = Callable[[int, int], NDArray[Any]]
# Elements read at a time.
_BLOCK = 1 << 20


def sketched_spectrum(
    rows: Rows,
    shape: tuple[int, int],
    sketch: Matrix,
    power_iterations: int,
    *,
    transposed: bool = False,
) -> Spectrum:
    """As many directions as the sketch has columns, which are no more than rows or columns; all arithmetic in float64.

    `transposed`: those of the transpose of the matrix that `rows` gives. The matrix is read 2 q + 2 times. Raises
    NonFiniteError where it holds NaN or infinity.
    """
    forth, back = (transposed_times, times) if transposed else (times, transposed_times)
    image = forth(rows, shape, sketch)
    if not np.isfinite(image).all():
        raise NonFiniteError("A matrix with NaN or infinity has no singular values.")
    basis, _ = np.linalg.qr(image)
    for _ in range(power_iterations):
        other, _ = np.linalg.qr(back(rows, shape, basis))
        basis, _ = np.linalg.qr(forth(rows, shape, other))
    other, core = np.linalg.qr(back(rows, shape, basis))
    inner = exact(np, core.T)
    return Spectrum(basis @ inner.left, inner.values, inner.right @ other.T)


def times(rows: Rows, shape: tuple[int, int], factor: Matrix) -> Matrix:
    """matrix @ factor."""
    found = np.empty((shape[0], factor.shape[1]))
    for start, stop in row_blocks(shape):
        found[start:stop] = rows(start, stop).astype(np.float64, copy=False) @ factor
    return found


def transposed_times(rows: Rows, shape: tuple[int, int], factor: Matrix) -> Matrix:
    """matrix^T @ factor."""
    found = np.zeros((shape[1], factor.shape[1]))
    for start, stop in row_blocks(shape):
        found += rows(start, stop).astype(np.float64, copy=False).T @ factor[start:stop]
    return found


def row_blocks(shape: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Ranges of rows, of about a million elements each; none of a matrix without elements."""
    rows, columns = shape
    if not columns:
        return
    step = max(1, _BLOCK // columns)
    for start in range(0, rows, step):
        yield start, min(start + step, rows)
