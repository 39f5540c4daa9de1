"""Computed floats made as narrow as they are stored, with one rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.errors import CompatibilityError
from weightsmith.tensors.dtypes import DType

NARROW = (DType.FLOAT64, DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16)
_NUMPY = {DType.FLOAT64: "<f8", DType.FLOAT32: "<f4", DType.FLOAT16: "<f2"}


def narrow(values: NDArray[Any], dtype: DType) -> NDArray[Any]:
    """float32 or float64 as `dtype`, to nearest with ties to even; bfloat16 comes as unsigned words of its width.

    The shape is kept; what is too large becomes infinite. Raises CompatibilityError for a dtype that is no float of
    16 to 64 bits.
    """
    if dtype in _NUMPY:
        with np.errstate(over="ignore"):
            return values.astype(_NUMPY[dtype])
    if dtype is not DType.BFLOAT16:
        raise CompatibilityError(
            f"Numbers cannot be stored as {dtype} without a scale; take {', '.join(map(str, NARROW[1:]))}."
        )
    with np.errstate(over="ignore"):
        single = values.astype("<f4")
    words = single.view("<u4").copy()
    wide = single.astype(np.float64)
    # To odd instead of to nearest: what float32 cut off then still counts as a digit in the one rounding that follows.
    inexact = np.isfinite(wide) & (wide != values)
    words -= (inexact & (np.abs(wide) > np.abs(values))).astype("<u4")
    words |= inexact.astype("<u4")
    # An overflow of float32 is one of bfloat16 too, whose largest number is smaller.
    upper = np.where(np.isfinite(wide), 0x7FFF + ((words >> 16) & 1), 0).astype("<u4")
    rounded = (words + upper) >> 16
    return np.where(np.isnan(wide), 0x7FC0, rounded).astype("<u2")


def fits(values: NDArray[Any], dtype: DType) -> bool:
    """Whether all numbers are of that dtype already, so that storing them loses no bit."""
    from weightsmith.tensors.widening import WORDS, widen

    stored = narrow(values, dtype)
    words = stored.view(WORDS[dtype.itemsize])
    return bool(np.array_equal(widen(words, dtype), values, equal_nan=True))
