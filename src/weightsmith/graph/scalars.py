"""Functions for the small solvers between passes: the same code serves floats, float64 arrays and torch scalars."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np


def _library(*arguments: Any) -> Any:
    torch = sys.modules.get("torch")
    if torch is not None and any(isinstance(a, torch.Tensor) for a in arguments):
        return torch
    return np


def _unary(name: str, x: Any) -> Any:
    with np.errstate(invalid="ignore", divide="ignore"):
        return getattr(_library(x), name)(x)


def sqrt(x: Any) -> Any:
    """Square root."""
    return _unary("sqrt", x)


def sin(x: Any) -> Any:
    """Sine."""
    return _unary("sin", x)


def cos(x: Any) -> Any:
    """Cosine."""
    return _unary("cos", x)


def acos(x: Any) -> Any:
    """Arc cosine."""
    return _unary("acos" if _library(x) is not np else "arccos", x)


def exp(x: Any) -> Any:
    """Exponential."""
    return _unary("exp", x)


def log(x: Any) -> Any:
    """Natural logarithm."""
    return _unary("log", x)


def floor(x: Any) -> Any:
    """Largest integer not above x."""
    return _unary("floor", x)


def absolute(x: Any) -> Any:
    """|x|."""
    return abs(x)


def clamp(x: Any, low: float, high: float) -> Any:
    """min(max(x, low), high)."""
    library = _library(x)
    return library.clip(x, low, high)


def where(condition: Any, a: Any, b: Any) -> Any:
    """`a` where the condition holds, else `b`; both are evaluated."""
    library = _library(condition, a, b)
    if library is np:
        return np.where(condition, a, b)[()]
    reference = next(t for t in (condition, a, b) if isinstance(t, library.Tensor))

    def as_tensor(number: Any) -> Any:
        return library.as_tensor(number, dtype=library.float64, device=reference.device)

    mask = (
        condition if isinstance(condition, library.Tensor) else library.as_tensor(bool(condition))
    )
    return library.where(mask, as_tensor(a), as_tensor(b))


def exact_sum(numbers: Iterable[float]) -> float:
    """The correctly rounded sum, whatever the order; NaN and infinities pass through."""
    listed = list(numbers)
    if any(not math.isfinite(number) for number in listed):
        return float(sum(listed))
    return math.fsum(listed)


def divide(a: Any, b: Any, otherwise: float = 0.0) -> Any:
    """a / b, and `otherwise` where b is zero - without a warning and with a finite gradient."""
    zero = b == 0
    return where(zero, otherwise, a / where(zero, 1.0, b))


def all_true(condition: Any) -> bool:
    """Whether the condition holds for the number, or for every row's number (an iteration may then stop early)."""
    return bool(condition.all()) if hasattr(condition, "all") else bool(condition)
