"""Leading singular directions of a change, found the same way whatever rank is asked for later.

Where the shorter axis has at most 1024 elements, all of them, by LAPACK in float64. Beyond, a range finder with a fixed
sketch of signs and two power iterations (Halko, Martinsson and Tropp, 2011) gives those of a quarter of the shorter
axis, which two bits per number in each factor make one bit per element; where strengths do not fall, its error is
within a few per cent of the best.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from weightsmith.graph import Spectrum, exact, sketched_spectrum

_EXACT, _MOST = 1024, 1024
_OVERSAMPLING = 16
_POWER_ITERATIONS = 2
_SEED = 6

Rows = Callable[[int, int], NDArray[np.float32]]


def significant_rank(found: Spectrum) -> int:
    """Directions that are more than what rounding to float32 leaves: max(rows, columns) 2^-24 of the strongest."""
    longest = max(found.left.shape[0], found.right.shape[1])
    return int(np.count_nonzero(found.values > found.values[:1] * longest * 2.0**-24))


def leading_directions(rows: Rows, shape: tuple[int, int]) -> Spectrum:
    """All directions of a small matrix, the leading quarter (1024 at most) of a large one, which is never held whole.

    `rows(first, last)` gives some of its rows, which must be finite.
    """
    shorter = min(shape)
    if shorter <= _EXACT:
        return exact(np, rows(0, shape[0]).astype(np.float64))
    return sketched_directions(rows, shape, min(shorter // 4, _MOST))


def sketched_directions(rows: Rows, shape: tuple[int, int], wanted: int) -> Spectrum:
    """So many leading directions by the range finder; the matrix is read six times, some rows at a time."""
    bits = np.random.Generator(np.random.PCG64(_SEED)).integers(
        0, 2, (shape[1], min(wanted + _OVERSAMPLING, *shape))
    )
    signs: NDArray[np.float64] = np.where(bits, 1.0, -1.0)
    return sketched_spectrum(rows, shape, signs, _POWER_ITERATIONS).leading(wanted)
