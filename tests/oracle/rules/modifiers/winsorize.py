"""The k smallest and the k largest values of each element are pulled to the nearest of the others.

theta'_i = min(max(theta_i, theta_(k+1)), theta_(N-k)); Tukey, 1962; Dixon, 1960.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ...families import Family

VARIANTS: list[dict[str, Any]] = [{}, {"k": 0}]


def winsorize(family: Family, parameters: dict) -> Family:
    """Experts whose extremes lie nearer."""
    k, number = parameters.get("k", 1), len(family.experts)
    experts: list[dict[str, np.ndarray]] = [{} for _ in family.experts]
    for name in family.places:
        ordered = np.sort([e[name] for e in family.experts], axis=0)
        for made, expert in zip(experts, family.experts, strict=True):
            made[name] = np.clip(expert[name], ordered[k], ordered[number - k - 1])
    return replace(family, experts=experts)
