"""Precision of whole-array functions, the same for numpy arrays and torch tensors."""

from __future__ import annotations

from typing import Any


def in_float64(linalg: Any, array: Any) -> Any:
    """The array in float64, so that results of different linear-algebra libraries agree after rounding."""
    return _cast(array, linalg.float64)


def in_dtype_of(reference: Any, array: Any) -> Any:
    """The array rounded to the dtype of `reference`."""
    return _cast(array, reference.dtype)


def _cast(array: Any, dtype: Any) -> Any:
    return array.to(dtype) if hasattr(array, "to") else array.astype(dtype)
