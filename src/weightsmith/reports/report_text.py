"""Numbers and untrusted names as a report writes them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from weightsmith.wording import harmless

ABSENT = "–"
_ELLIPSIS = "…"


def label(name: object, longest: int = 28) -> str:
    """An untrusted name for a picture: one line, harmless, the middle of a long one left out."""
    whole = harmless(str(name))
    if len(whole) <= longest:
        return whole
    front = (longest - 1) // 2
    return whole[:front] + _ELLIPSIS + whole[len(whole) - (longest - 1 - front) :]


def number(value: float | None, digits: int = 3) -> str:
    """About `digits` significant digits; a dash for what is not known."""
    if value is None or math.isnan(value):
        return ABSENT
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:.{digits}g}"


def share(value: float | None) -> str:
    """A share in percent with one decimal."""
    return ABSENT if value is None or math.isnan(value) else f"{100 * value:.1f} %"


def score(value: float | None) -> str:
    """A score with four decimals, or four digits if it is large."""
    if value is None or math.isnan(value):
        return ABSENT
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.4g}"


def interval(low: float, high: float) -> str:
    """`0.7123 to 0.7689`."""
    return f"{score(low)} to {score(high)}"


def written(estimate: Mapping[str, Any] | None) -> str:
    """An estimate, in the form of its JSON, with its interval in brackets."""
    if estimate is None:
        return ABSENT
    ends = interval(float(estimate["low"]), float(estimate["high"]))
    return f"{score(float(estimate['value']))} ({ends})"
