"""Clamp: theta = min(max(theta_1, -limit), limit)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ...families import Family

EXPERTS = 1
VARIANTS: list[dict[str, Any]] = [{}, {"limit": 0.0625}]


def clamp(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """No number beyond the limit."""
    limit, (expert,) = parameters.get("limit", 65504.0), family.experts
    return {name: np.clip(expert[name], -limit, limit) for name in family.places}
