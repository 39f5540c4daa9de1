"""Solutions with a positive definite matrix from its Cholesky factor, C = L L^T: half the work of an elimination.

numpy has the factor but no triangular solve, and copies what it factorises. Here both go block by block, in place, with
products of matrices for nearly all of the work; blocks of the diagonal are inverted, which is as accurate as
elimination where the matrix is well conditioned. torch has routines of its own, through which gradients flow.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

_BLOCK = 256


def factorised(linalg: Any, matrix: Any) -> Any:
    """L, whose upper triangle means nothing, in the place of a symmetric `matrix` where that is numpy's.

    Raises the library's LinAlgError if the matrix is not positive definite.
    """
    if linalg is not np:
        return linalg.linalg.cholesky(matrix)
    for start, stop in _blocks(len(matrix)):
        panel = matrix[start:, start:stop]
        if start:
            panel -= matrix[start:, :start] @ matrix[start:stop, :start].T
        size = stop - start
        panel[:size] = np.linalg.cholesky(panel[:size])
        panel[size:] = panel[size:] @ _inverse(panel[:size]).T
    return matrix


def divided(linalg: Any, rows: Any, factor: Any) -> Any:
    """rows C^-1 for a factor of C, in the place of `rows` where they are numpy's."""
    if linalg is not np:
        return linalg.cholesky_solve(rows.T, factor).T
    blocks = list(_blocks(len(factor)))
    inverses = [_inverse(factor[start:stop, start:stop]) for start, stop in blocks]
    for (start, stop), inverse in zip(blocks, inverses, strict=True):
        part = rows[:, start:stop]
        if start:
            part -= rows[:, :start] @ factor[start:stop, :start].T
        part[...] = part @ inverse.T
    for (start, stop), inverse in reversed(list(zip(blocks, inverses, strict=True))):
        part = rows[:, start:stop]
        if stop < len(factor):
            part -= rows[:, stop:] @ factor[stop:, start:stop]
        part[...] = part @ inverse
    return rows


def _blocks(size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + _BLOCK, size)) for start in range(0, size, _BLOCK))


def _inverse(lower: Any) -> Any:
    return np.tril(np.linalg.inv(np.tril(lower)))
