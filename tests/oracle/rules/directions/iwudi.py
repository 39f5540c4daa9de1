"""IWUDI (Wei et al., ICLR 2026, arXiv:2505.19892): WUDI stopped early by a filter.

exponential 1 - exp(-l t);   landweber 1 - (1 - eta l)^n, eta = .9 / l_max;   tikhonov l / (l + a);   none 1
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared import filters
from ..shared.matrices import EXACT_RANKS, RULE_VARIANTS
from ..shared.values import with_preset

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        **filters.DEFAULTS,
        "filter": "exponential",
        "time": 300.0,
        "iterations": 150,
        "ridge": 0.01,
    }
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"filter": "landweber"},
    {"filter": "tikhonov", "start": "mean"},
    {"filter": "none", "start": "zero", "weight": [1.0, 0.5, -2.0]},
    {"time": 3.0, "start": "mean", "lambda": 0.5},
    {"filter": "landweber", "iterations": 5, "rank_tolerance": 0.3},
    {"filter": "tikhonov", "ridge": 0.5, "embeddings": "spectral"},
    *RULE_VARIANTS,
]
# Filters damp the directions that the minimiser of wudi has to divide by.
TOLERANCE = 1e-9
STRUCTURED = 3
EXACT = EXACT_RANKS


def iwudi(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """WUDI with a smooth filter."""
    how = with_preset(parameters, PRESETS)

    def gains(seen: filters.Seen) -> np.ndarray:
        values = seen.values
        return {
            "exponential": 1.0 - np.exp(-how["time"] * values),
            "landweber": 1.0 - (1.0 - 0.9 / values[0] * values) ** how["iterations"],
            "tikhonov": values / (values + how["ridge"]),
            "none": np.ones_like(values),
        }[how["filter"]]

    return filters.filtered(family, how, gains)
