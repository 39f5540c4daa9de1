"""SWUDI (Wei et al., ICLR 2026, arXiv:2505.19892): WUDI with a filter and a hard cut.

f(l) = 1 - exp(-l t) of the ceil(rho n) largest of n eigenvalues, else 0
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared import filters
from ..shared.matrices import EXACT_RANKS, RULE_VARIANTS
from ..shared.values import with_preset

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {**filters.DEFAULTS, "time": 1300.0, "rank_share": 0.65}
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"time": 300.0, "rank_share": 0.85, "start": "mean"},
    {"time": 5.0, "rank_share": 0.01, "lambda": 0.2, "weight": [1.0, 0.5, 2.0]},
    {"rank_share": 1.0, "start": "zero"},
    {"embeddings": "spectral"},
    *RULE_VARIANTS,
]
# As wudi on the leading directions.
TOLERANCE = 1e-9
STRUCTURED = 3
EXACT = EXACT_RANKS


def swudi(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """WUDI with a filter and a hard cut."""
    how = with_preset(parameters, PRESETS)

    def gains(seen: filters.Seen) -> np.ndarray:
        count = math.ceil(Fraction(str(how["rank_share"])) * seen.shape[1])
        return filters.leading(count, seen.values) * (1.0 - np.exp(-how["time"] * seen.values))

    return filters.filtered(family, how, gains)
