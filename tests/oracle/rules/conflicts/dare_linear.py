"""DARE, drop and rescale (Yu et al., ICML 2024, arXiv:2311.03099), then task arithmetic.

    m_i ~ Bernoulli(density) per element;   tau^_i = m_i tau_i / density;   theta = theta_0 + lambda sum_i w_i tau^_i

The masks are those of the documented generator. Their control drops the smallest elements of each tensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.consensus import summed
from ..shared.order import count, largest
from ..shared.randomness import uniform
from ..shared.rescaling import rescaled
from ..shared.values import each, with_preset

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "weight": 1.0,
        "density": 0.1,
        "drop": "random",
        "normalize": "none",
        "rescale": "probability",
        "rescale_floor": 0.0,
        "lambda": 1.0,
    },
    "mergekit": {"density": 1.0, "rescale": "l1", "rescale_floor": 1e-7},
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"density": [0.3, 0.5, 1.0], "weight": [0.5, 1.0, -0.25], "lambda": 0.7},
    {"density": 0.4, "rescale": "none", "normalize": "absolute"},
    {"density": 0.4, "drop": "magnitude"},
    {"density": 0.4, "drop": "magnitude", "rescale": "l1"},
    {"preset": "mergekit", "weight": [1.0, 0.5, 0.7], "density": 0.5, "normalize": "signed"},
]
EQUAL = VARIANTS


def dare_linear(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The sum of what was kept."""
    given = with_preset(parameters, PRESETS)
    return summed(family, dropped(family, given), given)


def dropped(family: Family, given: dict[str, Any]) -> dict[str, list[np.ndarray]]:
    """The task vectors of each tensor after the drop."""
    found: dict[str, list[np.ndarray]] = {}
    for name, place in family.places.items():
        shares = each(given, "density", name, len(family.experts))
        found[name] = []
        for i, (delta, share) in enumerate(zip(family.deltas(name), shares, strict=True)):
            if given["drop"] == "magnitude":
                mask = largest(delta, count(share, delta.size))
            else:
                mask = uniform(family.seed, family.label(i), name, place.shape) < share
            found[name].append(rescaled(delta, np.where(mask, delta, 0.0), share, given))
    return found
