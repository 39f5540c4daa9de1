"""Singular values and directions of a change that is read block of rows by block of rows.

    whole     min(m, n) <= 1024, or most directions are wanted: Householder QR of the blocks below one another, then the
              SVD of the n x n factor R (m > n); LAPACK's SVD of the matrix itself (m <= n)
    sketched  otherwise: the range of D (D^T D)^2 S for a keyed matrix S of signs, ten columns wider than wanted
              (Halko, Martinsson and Tropp, 2011), six passes over the tensors

Both are projections B = D V V^T or B = Q Q^T D, so ||D - B||^2 = ||D||^2 - ||B||^2 holds exactly, and how much is left
over by the directions that are known needs no estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from weightsmith.deltas import Change, LowRankChange, Matrix
from weightsmith.graph import Spectrum, exact, row_blocks, signs, sketched_spectrum, times
from weightsmith.lora.algebra import leading as leading_factors
from weightsmith.lora.algebra import signed

# The smaller axis up to which all directions are found.
_WHOLE = 1024
_OVERSAMPLING = 10
_POWER_ITERATIONS = 2
_FIRST_WIDTH = 64


@dataclass(frozen=True, slots=True, eq=False)
class ChangeDirections:
    """Leading singular values of a change, falling; `leading(rank)` gives the balanced factors of the first of them.

    `is_whole`: these are all that are not rounding.
    """

    values: Matrix
    leading: Callable[[int], LowRankChange]
    is_whole: bool


def decompositions(change: Change, key: str, rank: int | None) -> Iterator[ChangeDirections]:
    """Ever more directions of a change: those of a sketch, of one twice as wide, and at last all.

    With `rank` the first ones are that many, and the last. `key` selects the sketch, so the same change under the same
    name always has the same directions.
    """
    smaller = min(change.shape)
    wanted = _FIRST_WIDTH if rank is None else rank
    while smaller > _WHOLE and 2 * (wanted + _OVERSAMPLING) < smaller:
        yield sketched(change, key, wanted)
        if rank is not None:
            return
        wanted *= 2
    yield whole(change)


def whole(change: Change) -> ChangeDirections:
    """All directions that are not rounding."""
    rows, columns = change.shape
    if rows > columns:
        return _tall(change)
    return _directions(signed(exact(np, change.rows(0, rows))), is_whole=True)


def sketched(change: Change, key: str, wanted: int) -> ChangeDirections:
    """The first `wanted` directions, or as many as there are."""
    sketch = signs((change.shape[1], wanted + _OVERSAMPLING), 0, key)
    found = signed(sketched_spectrum(change.rows, change.shape, sketch, _POWER_ITERATIONS))
    return _directions(found.leading(wanted), is_whole=found.rank < wanted)


def residual(change: Change, approximation: LowRankChange) -> float:
    """||change - approximation||_F, measured element by element in float64."""
    squares = 0.0
    for start, stop in row_blocks(change.shape):
        rest = change.rows(start, stop) - approximation.rows(start, stop)
        squares += float(np.square(rest).sum())
    return float(np.sqrt(squares))


def _directions(spectrum: Spectrum, *, is_whole: bool) -> ChangeDirections:
    return ChangeDirections(spectrum.values, partial(leading_factors, spectrum), is_whole)


def _tall(change: Change) -> ChangeDirections:
    """The directions of more rows than columns: the left ones are made of the rows again, once it is known how many."""
    found = exact(np, _triangle(change))
    kept = found.values > found.values[0] * np.finfo(np.float64).eps * max(change.shape)
    values, right = found.values[kept], found.right[kept]

    def leading(rank: int) -> LowRankChange:
        root = np.sqrt(values[:rank])
        left = times(change.rows, change.shape, right[:rank].T) / root
        largest = left[abs(left).argmax(axis=0), np.arange(left.shape[1])]
        sign = np.where(largest < 0.0, -1.0, 1.0)
        return LowRankChange(left * sign, (sign * root)[:, None] * right[:rank])

    return ChangeDirections(values, leading, is_whole=True)


def _triangle(change: Change) -> Matrix:
    """R of the QR decomposition, from as many rows at a time as there are columns."""
    rows, columns = change.shape
    triangle: Matrix = np.empty((0, columns))
    step = max(columns, (1 << 20) // max(columns, 1))
    for start in range(0, rows, step):
        block = change.rows(start, min(start + step, rows))
        _, triangle = np.linalg.qr(np.concatenate([triangle, block]))
    return triangle
