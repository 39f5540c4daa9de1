"""AIM (2025, arXiv:2502.02421). The base's mean input magnitudes, given to the weights that multiply them: a.

    theta = theta_0 + (1 - (1 - omega) a / max a) lambda sum_i w_i tau_i

Tensors of which nothing was measured: without the factor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.values import each, shared, with_preset

if TYPE_CHECKING:
    from ...families import Family

STATISTICS = "channels:input_magnitude"
PRESETS: dict[str, dict[str, Any]] = {"paper": {"omega": 0.4, "weight": 1.0, "lambda": 1.0}}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"experts": 1},
    {"omega": 0.0, "weight": [0.5, -0.25, 1.0], "lambda": 0.6},
    {"omega": 1.0},
    {"omega": 1.0, "experts": 1, "lambda": 0.5},
]
SKIPS = {
    "rules": "the base is listed for its statistics, and one more model to the average of a rule"
}


def aim(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The relaxed sum of task vectors."""
    how = with_preset(parameters, PRESETS)
    merged = {}
    for name, base in family.base.items():
        deltas = family.deltas(name)
        weights = each(how, "weight", name, len(deltas))
        change = sum(w * d for w, d in zip(weights, deltas, strict=True))
        change = shared(how, "lambda", name) * change
        activity = family.statistics[0].get(name)
        if activity is not None and activity.max() > 0:
            change = change * (1.0 - activity / activity.max() * (1.0 - how["omega"]))
        merged[name] = base + change
    return merged
