"""The multi-task vector of TALL masks and Consensus, and the masks of its tasks."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..conflicts.ties import ties
from .order import count, largest_of_model
from .values import each

DEFAULTS: dict[str, Any] = {
    "mask_lambda": 0.4,
    "vector": "sum",
    "density": 0.2,
    "masks": "tall",
    "mask_density": 0.1,
}


def multi_task(family: Any, given: dict[str, Any]) -> dict[str, np.ndarray]:
    """sum_i tau_i, or the sum of what TIES trims to a share of the model and elects."""
    if given["vector"] == "sum":
        return {n: sum(family.deltas(n)) for n in family.places}
    voted = ties(family, {"density": given["density"], "normalize": "none"})
    return {n: voted[n] - family.base[n] for n in family.places}


def task_masks(
    family: Any, vector: dict[str, np.ndarray], given: dict[str, Any]
) -> dict[str, list[np.ndarray]]:
    """m_t = [ |tau_t| > lambda_t |tau - tau_t| ], or the largest |tau_t| of the model."""
    masks: dict[str, list[np.ndarray]] = {n: [] for n in family.places}
    for t in range(len(family.experts)):
        deltas = {n: family.deltas(n)[t] for n in family.places}
        if given["masks"] == "magnitude":
            share = each(given, "mask_density", "", len(family.experts))[t]
            chosen = largest_of_model(deltas, count(share, sum(d.size for d in deltas.values())))
            found = {n: m & (deltas[n] != 0) for n, m in chosen.items()}
        else:
            found = {}
            for name, delta in deltas.items():
                factor = each(given, "mask_lambda", name, len(family.experts))[t]
                found[name] = np.abs(delta) > factor * np.abs(vector[name] - delta)
        for name, mask in found.items():
            masks[name].append(mask)
    return masks
