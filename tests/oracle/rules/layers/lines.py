"""LiNeS, layer-increasing scaling (Wang et al., ICLR 2025, arXiv:2410.17146).

    theta = theta_0 + s_l tau_M;   s_l = alpha + beta l / (L - 1) in block l = 0..L-1;   s = alpha elsewhere
    alpha = (||sum_i tau_i||_1 / ||tau_M||_1) / N    over the whole model;   beta = 1 - alpha

The authors' code divides the norm of the summed task vectors by that of the merged one and by the number of tasks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..conflicts.ties import PRESETS as TIES
from ..conflicts.ties import ties
from ..shared.values import each, shared, with_preset

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"alpha": None, "beta": None, "weight": 1.0, "merger": "sum", "density": 0.2}
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"alpha": 0.3, "beta": 0.9},
    {"weight": [0.5, 1.0, 0.25]},
    {"merger": "ties", "density": 0.3},
    {"merger": "first"},
    {"experts": 1, "alpha": 0.4},
]
EQUAL = VARIANTS


def lines(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """Scale the merged task vector by depth."""
    given = with_preset(parameters, PRESETS)
    merged = _merged(family, given)
    parts = slice(1, None) if given["merger"] == "first" else slice(None)
    alpha = given["alpha"]
    if alpha is None:
        total = sum(np.abs(sum(family.deltas(n)[parts])).sum() for n in family.places)
        length = sum(np.abs(change).sum() for change in merged.values())
        alpha = total / length / len(family.experts[parts]) if length else 1.0
    made = {}
    for name, place in family.places.items():
        first = alpha[name] if isinstance(alpha, dict) else alpha
        slope = shared(given, "beta", name)
        slope = 1 - first if slope is None else slope
        scale = first
        if place.layer is not None:
            scale += slope * (place.layer / (place.layers - 1) if place.layers > 1 else 1.0)
        made[name] = family.base[name] + scale * merged[name]
    return made


def _merged(family: Family, given: dict[str, Any]) -> dict[str, np.ndarray]:
    """tau_M."""
    if given["merger"] == "ties":
        wanted = {**TIES["paper"], "weight": given["weight"], "density": given["density"]}
        found = ties(family, wanted)
        return {n: found[n] - family.base[n] for n in family.places}
    made = {}
    for name in family.places:
        deltas = family.deltas(name)
        weights = each(given, "weight", name, len(deltas))
        if given["merger"] == "first":
            made[name] = deltas[0]
        else:
            made[name] = sum(w * d for w, d in zip(weights, deltas, strict=True))
    return made
