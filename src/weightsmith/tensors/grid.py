"""The grid of numbers that a float type has: how far apart they lie."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from weightsmith.tensors.dtypes import DType

# Bits of the fraction, and the exponent of the smallest normal number.
_GRIDS = {
    DType.FLOAT64: (52, -1022),
    DType.FLOAT32: (23, -126),
    DType.FLOAT16: (10, -14),
    DType.BFLOAT16: (7, -126),
    DType.FLOAT8_E4M3FN: (3, -6),
    DType.FLOAT8_E5M2: (2, -14),
}


def roundoff(dtype: DType) -> float:
    """The largest relative error of a normal number's rounding: 2^-24 for float32, 2^-8 for bfloat16."""
    return float(2.0 ** -(_GRIDS[dtype][0] + 1))


def gaps(values: NDArray[np.float64], dtype: DType) -> NDArray[np.float64]:
    """For each number the distance between its neighbours in `dtype` on its side of the next power of two."""
    fraction, smallest = _GRIDS[dtype]
    exponents = np.where(values == 0.0, smallest, np.maximum(np.frexp(values)[1] - 1, smallest))
    distances: NDArray[np.float64] = np.ldexp(1.0, exponents - fraction)
    return distances
