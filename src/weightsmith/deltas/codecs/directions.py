"""Leading singular directions of a change, found the same way whatever rank is asked for later.

Where the shorter axis has at most 1024 elements, all of them, by LAPACK in float64. Beyond, a range finder with a fixed
sketch of signs and two power iterations (Halko, Martinsson and Tropp, 2011) gives those of a quarter of the shorter
axis, which two bits per number in each factor make one bit per element; where strengths do not fall, its error is
within a few per cent of the best.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weightsmith.graph import sketched_spectrum

_EXACT, _MOST = 1024, 1024
_OVERSAMPLING = 16
_POWER_ITERATIONS = 2
_SEED = 6

Rows = Callable[[int, int], NDArray[np.float32]]


@dataclass(frozen=True, slots=True, eq=False)
class SingularDirections:
    """left @ diag(strengths) @ right: orthonormal columns of `left` and rows of `right`, strengths falling."""

    left: NDArray[np.float64]
    strengths: NDArray[np.float64]
    right: NDArray[np.float64]

    @property
    def rank(self) -> int:
        """Directions that are more than what rounding to float32 leaves: max(rows, columns) 2^-24 of the strongest."""
        longest = max(self.left.shape[0], self.right.shape[1])
        return int(np.count_nonzero(self.strengths > self.strengths[:1] * longest * 2.0**-24))


def leading_directions(rows: Rows, shape: tuple[int, int]) -> SingularDirections:
    """All directions of a small matrix, the leading quarter (1024 at most) of a large one, which is never held whole.

    `rows(first, last)` gives some of its rows, which must be finite.
    """
    shorter = min(shape)
    if shorter <= _EXACT:
        return SingularDirections(
            *np.linalg.svd(rows(0, shape[0]).astype(np.float64), full_matrices=False)
        )
    return sketched_directions(rows, shape, min(shorter // 4, _MOST))


def sketched_directions(rows: Rows, shape: tuple[int, int], wanted: int) -> SingularDirections:
    """So many leading directions by the range finder; the matrix is read six times, some rows at a time."""
    bits = np.random.Generator(np.random.PCG64(_SEED)).integers(
        0, 2, (shape[1], min(wanted + _OVERSAMPLING, *shape))
    )
    signs: NDArray[np.float64] = np.where(bits, 1.0, -1.0)
    found = sketched_spectrum(rows, shape, signs, _POWER_ITERATIONS).leading(wanted)
    return SingularDirections(found.left, found.values, found.right)
