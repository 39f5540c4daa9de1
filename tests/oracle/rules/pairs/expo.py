"""ExPO, model extrapolation (Zheng et al., 2024, arXiv:2404.16792): theta_1 + alpha (theta_1 - theta_0)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from ...families import Family

EXPERTS = 1
VARIANTS: list[dict[str, Any]] = [{}, {"alpha": -0.4}]


def expo(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """Beyond the expert."""
    alpha, (expert,) = parameters.get("alpha", 0.3), family.experts
    return {n: expert[n] + alpha * (expert[n] - family.base[n]) for n in family.places}
