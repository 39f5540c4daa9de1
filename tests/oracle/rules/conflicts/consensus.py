"""Consensus merging (Wang et al., ICML 2024, arXiv:2405.07813).

m_t = [ |tau_t| > lambda_t |tau - tau_t| ];   theta = theta_0 + lambda [ sum_t m_t >= k ] tau
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.tasks import DEFAULTS, multi_task, task_masks
from ..shared.values import with_preset

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {**DEFAULTS, "k": 2, "lambda": 1.0},
    "ties": {"vector": "ties"},
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"k": 1, "lambda": 0.6, "mask_lambda": [0.2, 0.6, 1.0]},
    {"k": 0},
    {"k": 3, "mask_lambda": 0.2},
    {"preset": "ties"},
    {"preset": "ties", "density": 0.5, "masks": "magnitude", "mask_density": 0.4},
    {"masks": "magnitude", "mask_density": 0.5},
    {"experts": 4, "k": 2},
]
EQUAL = VARIANTS


def consensus(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """What enough tasks use of the multi-task vector."""
    given = with_preset(parameters, PRESETS)
    vector = multi_task(family, given)
    masks = task_masks(family, vector, given)
    return {
        n: family.base[n]
        + given["lambda"] * np.where(sum(map(np.int64, masks[n])) >= given["k"], vector[n], 0.0)
        for n in family.places
    }
