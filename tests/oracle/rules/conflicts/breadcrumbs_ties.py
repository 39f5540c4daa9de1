"""The masks of Model Breadcrumbs (arXiv:2312.06795), then the election and disjoint mean of TIES.

g = sign(sum_i w_i tau^_i);   theta = theta_0 + lambda * (mean of the w_i tau^_i whose sign is g)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..shared.consensus import disjoint
from ..shared.values import with_preset
from .breadcrumbs import PRESETS as MASKS
from .breadcrumbs import middles

if TYPE_CHECKING:
    import numpy as np

    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {**MASKS["paper"], "normalize": "absolute", "zero_sum": "zero"},
    "mergekit": {**MASKS["mergekit"], "normalize": "none", "zero_sum": "positive"},
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"density": [0.3, 0.9, 1.0], "gamma": [0.1, 0.2, 0.05], "weight": [0.5, 1.0, 2.0]},
    {"density": 0.5, "gamma": 0.1, "rescale": "l1", "lambda": 0.6},
    {"preset": "mergekit", "weight": [1.0, 0.5, 0.7], "density": 0.5},
]
EQUAL = VARIANTS


def breadcrumbs_ties(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The disjoint mean of the middles."""
    given = with_preset(parameters, PRESETS)
    return disjoint(family, middles(family, given), given)
