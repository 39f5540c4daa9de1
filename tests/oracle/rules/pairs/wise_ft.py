"""WiSE-FT (Wortsman et al., CVPR 2022, arXiv:2109.01903): (1 - alpha) theta_0 + alpha theta_1."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from ...families import Family

EXPERTS = 1
VARIANTS: list[dict[str, Any]] = [{}, {"alpha": 0.3}, {"alpha": 1.5}]


def wise_ft(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """Between the base and the expert."""
    alpha, (expert,) = parameters.get("alpha", 0.5), family.experts
    return {n: (1 - alpha) * family.base[n] + alpha * expert[n] for n in family.places}
