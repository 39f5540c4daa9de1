"""How far a result that was computed from a rounded one may be from the same result computed afresh."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightsmith.tensors import DType

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# The exponent of the smallest number above zero.
_SMALLEST = {
    DType.FLOAT64: -1074,
    DType.FLOAT32: -149,
    DType.FLOAT16: -24,
    DType.BFLOAT16: -133,
    DType.FLOAT8_E4M3FN: -9,
    DType.FLOAT8_E5M2: -16,
}
_WORK = 2.0**-24


@dataclass(frozen=True, slots=True)
class RoundingBound:
    """For every element: |NEW - fresh| <= merged |MERGED| + result |NEW| + inputs max_i |x_i| + smallest.

    The first term is the rounding of MERGED as it was stored, times its ratio in NEW; the second that of NEW and of
    the fresh merge; the third the arithmetic in float32, x_i being the inputs of the merge, MERGED among them.
    """

    merged: float
    result: float
    inputs: float
    smallest: float

    def at(
        self, merged: NDArray[np.float64], result: NDArray[np.float64], largest: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """The bound element by element; `largest` is the largest magnitude of any input."""
        sizes = self.merged * abs(merged) + self.result * abs(result) + self.inputs * abs(largest)
        total: NDArray[np.float64] = sizes + self.smallest
        return total


def bound_of(
    ratio: float,
    others: Collection[float],
    before: Collection[float],
    after: Collection[float],
    stored: DType,
) -> RoundingBound:
    """The bound for NEW = ratio MERGED + sum of `others` times inputs.

    `before` and `after` are the coefficients of the merge on record and of the fresh one; `stored` the dtype of
    MERGED and NEW. A tensor that is copied has a bound of 0.

    With u half a unit in the last place of `stored`, r the ratio and g the error of a float32 sum of n terms relative
    to the largest, 4 (n + 2) 2^-24 sum_i |c_i| for differences from an anchor:

        (1 - u) |NEW - fresh| <= u |r| |MERGED| + 2 u |NEW| + (|r| g_before + g_new + g_after) max_i |x_i|
    """
    if stored not in _SMALLEST or (ratio == 1.0 and not others):
        return RoundingBound(0.0, 0.0, 0.0, 0.0)
    unit = 2.0**-stored.significant_bits
    sums = abs(ratio) * _sum_error(before)
    sums += _sum_error([ratio, *others]) + _sum_error(after)
    rest = 1.0 - unit
    least = (abs(ratio) + 2.0) * 2.0 ** max(_SMALLEST[stored] - 1, -1074)
    return RoundingBound(abs(ratio) * unit / rest, 2.0 * unit / rest, sums / rest, least / rest)


def _sum_error(factors: Collection[float]) -> float:
    return 4.0 * (len(factors) + 2) * _WORK * math.fsum(map(abs, factors))
