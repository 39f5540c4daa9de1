"""MagPrune of DELLA (Deep et al., 2024, arXiv:2406.11617), then task arithmetic.

    r = 0..n-1, the rank of |tau_i| in its row;   q = (density - epsilon) + 2 epsilon r / (n - 1)
    m ~ Bernoulli(q);   tau^_i = m tau_i / q;   theta = theta_0 + lambda sum_i w_i tau^_i

Their code can also rank the whole tensor, or take (|tau| - min) / (max - min) of the row for r / (n - 1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.consensus import summed
from ..shared.randomness import uniform
from ..shared.rescaling import rescaled
from ..shared.values import each, with_preset

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "weight": 1.0,
        "density": 0.7,
        "epsilon": 0.07,
        "ranking": "row",
        "normalize": "none",
        "rescale": "probability",
        "rescale_floor": 0.0,
        "lambda": 1.0,
    },
    "mergekit": {"density": 1.0, "epsilon": 0.15, "rescale": "l1", "rescale_floor": 1e-7},
}
SKIPS = {"shares": "density and epsilon bound each other, so that few lists go with every variant"}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"density": [0.3, 0.5, 1.0], "epsilon": [0.2, 0.1, 0.0], "weight": [0.5, 1.0, -0.25]},
    {"ranking": "tensor", "density": 0.5, "epsilon": 0.3},
    {"ranking": "magnitude", "density": 0.5, "epsilon": 0.3, "rescale": "none"},
    {"preset": "mergekit", "weight": [1.0, 0.5, 0.7], "density": 0.5},
]
EQUAL = VARIANTS


def della_linear(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The sum of what was kept."""
    given = with_preset(parameters, PRESETS)
    return summed(family, pruned(family, given), given)


def pruned(family: Family, given: dict[str, Any]) -> dict[str, list[np.ndarray]]:
    """The task vectors of each tensor after MagPrune."""
    found: dict[str, list[np.ndarray]] = {}
    for name, place in family.places.items():
        count = len(family.experts)
        shares, spreads = each(given, "density", name, count), each(given, "epsilon", name, count)
        found[name] = []
        for i, delta in enumerate(family.deltas(name)):
            if shares[i] in (0, 1):
                found[name].append(shares[i] * delta)
                continue
            depth = _depths(np.abs(delta), given["ranking"])
            kept = shares[i] - spreads[i] + 2 * spreads[i] * depth
            mask = uniform(family.seed, family.label(i), name, place.shape) < kept
            found[name].append(rescaled(delta, np.where(mask, delta, 0.0), kept, given))
    return found


def _depths(magnitudes: np.ndarray, ranking: str) -> np.ndarray:
    """r / (n - 1) of every element; 1/2 where there is nothing to rank."""
    whole = ranking == "tensor" or magnitudes.ndim < 2
    rows = magnitudes.reshape(1, -1) if whole else magnitudes.reshape(-1, magnitudes.shape[-1])
    if ranking == "magnitude":
        low, high = rows.min(axis=1, keepdims=True), rows.max(axis=1, keepdims=True)
        spread = high - low
        depth = np.divide(rows - low, spread, out=np.full_like(rows, 0.5), where=spread > 0)
    elif rows.shape[1] == 1:
        depth = np.full_like(rows, 0.5)
    else:
        order = np.argsort(rows, axis=1, kind="stable")
        depth = np.argsort(order, axis=1) / (rows.shape[1] - 1)
    return depth.reshape(magnitudes.shape)
