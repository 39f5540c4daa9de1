"""Stored floats made wide enough to compute with, exactly."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from weightsmith.errors import CompatibilityError
from weightsmith.tensors.dtypes import DType

# The unsigned integer of each width, in which bytes of any element type travel unchanged.
WORDS: dict[int, npt.DTypeLike] = {1: "<u1", 2: "<u2", 4: "<u4", 8: "<u8"}


def widen(words: NDArray[Any], dtype: DType) -> NDArray[Any]:
    """Elements of `dtype`, given as unsigned integers of its width, as float32 (float64 for float64): no bit is lost.

    The shape is kept. float32 and float64 are views of `words`. Raises CompatibilityError for a dtype that is no float.
    """
    if dtype is DType.FLOAT32:
        return words.view("<f4")
    if dtype is DType.FLOAT64:
        return words.view("<f8")
    if dtype is DType.BFLOAT16:
        wide = words.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    if dtype is DType.FLOAT16:
        return words.view("<f2").astype(np.float32)
    if dtype.is_fp8:
        values: NDArray[np.float32] = _fp8_values(dtype)[words]
        return values
    raise CompatibilityError(f"{dtype} holds no floats and cannot be computed with.")


@functools.cache
def _fp8_values(dtype: DType) -> NDArray[np.float32]:
    """The 256 values of an 8-bit float."""
    codes = np.arange(256, dtype=np.uint16)
    if dtype is DType.FLOAT8_E5M2:
        # The upper half of a float16.
        return (codes << 8).view("<f2").astype(np.float32)
    sign = np.where(codes & 0x80, -1.0, 1.0)
    exponent, fraction = (codes >> 3) & 0xF, (codes & 0x7) / 8.0
    values = np.where(
        exponent == 0, np.ldexp(fraction, -6), np.ldexp(1 + fraction, exponent.astype(np.int64) - 7)
    )
    values = np.where((codes & 0x7F) == 0x7F, np.nan, sign * values)
    return values.astype(np.float32)
