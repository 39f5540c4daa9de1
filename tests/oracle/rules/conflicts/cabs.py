"""CABS (2025, arXiv:2503.01874): n of every m elements of each task vector, none at a place of an earlier one.

    theta = theta_0 + lambda sum_i w_i m_i tau_i

Blocks lie one behind the other in the flattened tensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.consensus import summed
from ..shared.values import each, shared, with_preset

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"weight": 1.0, "n": 64, "m": 256, "normalize": "none", "lambda": 1.0},
    "reference": {"weight": 1.2},
}
VARIANTS: list[dict[str, Any]] = [
    {"n": 2, "m": 7},
    {},
    {"preset": "reference"},
    {"n": [3, 0, 5], "m": 8, "weight": [1.0, 2.0, -0.5], "lambda": 0.6},
    {"n": 4, "m": 8, "normalize": "absolute"},
    {"n": 3, "m": 3},
    {"n": 1, "m": 1000},
    {"experts": 1, "n": 1, "m": 2},
]
EQUAL = VARIANTS


def cabs(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """Task arithmetic with pruned task vectors."""
    given = with_preset(parameters, PRESETS)
    sparse = {}
    for name in family.places:
        deltas = family.deltas(name)
        counts = each(given, "n", name, len(deltas))
        sparse[name] = _pruned(deltas, counts, shared(given, "m", name))
    return summed(family, sparse, given)


def _pruned(deltas: list[np.ndarray], counts: list[int], block: int) -> list[np.ndarray]:
    kept = [np.zeros(delta.size) for delta in deltas]
    for start in range(0, deltas[0].size, block):
        free = set(range(start, min(start + block, deltas[0].size)))
        for delta, count, result in zip(deltas, counts, kept, strict=True):
            flat = delta.ravel()
            order = sorted(free, key=lambda i, flat=flat: (-abs(flat[i]), i))
            chosen = [i for i in order[:count] if flat[i]]
            result[chosen] = flat[chosen]
            free -= set(chosen)
    return [k.reshape(d.shape) for k, d in zip(kept, deltas, strict=True)]
