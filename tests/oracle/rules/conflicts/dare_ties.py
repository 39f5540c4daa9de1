"""DARE, drop and rescale (Yu et al., ICML 2024, arXiv:2311.03099), then the election of TIES.

    tau^_i = m_i tau_i / density;   g = sign(sum_i w_i tau^_i)
    theta = theta_0 + lambda * (mean of the w_i tau^_i whose sign is g)

The authors' code trims what was kept to a fifth of the model before the election (preset mergelm).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.consensus import disjoint
from ..shared.order import count, largest_of_model
from ..shared.values import with_preset
from .dare_linear import PRESETS as DARE
from .dare_linear import dropped

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        **DARE["paper"],
        "trim": 1.0,
        "normalize": "absolute",
        "zero_sum": "zero",
    },
    "mergekit": {**DARE["mergekit"], "normalize": "none", "zero_sum": "positive"},
    "mergelm": {"trim": 0.2, "zero_sum": "majority"},
}
VARIANTS: list[dict[str, Any]] = [
    {"density": 0.5},
    {},
    {"density": [0.5, 0.7, 1.0], "weight": [0.5, 1.0, 2.0], "lambda": 0.7, "normalize": "signed"},
    {"preset": "mergelm", "density": 0.5},
    {"density": 0.5, "trim": 0.3, "rescale": "none"},
    {"density": 0.4, "drop": "magnitude", "zero_sum": "minority"},
    {"preset": "mergekit", "weight": [1.0, 0.5, 0.7], "density": 0.5},
]
EQUAL = VARIANTS


def dare_ties(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The disjoint mean of what was kept."""
    given = with_preset(parameters, PRESETS)
    sparse = dropped(family, given)
    if given["trim"] < 1:
        for i in range(len(family.experts)):
            parts = {n: sparse[n][i] for n in sparse}
            size = sum(x.size for x in parts.values())
            masks = largest_of_model(parts, count(given["trim"], size))
            for name, part in parts.items():
                sparse[name][i] = np.where(masks[name], part, 0.0)
    return disjoint(family, sparse, given)
