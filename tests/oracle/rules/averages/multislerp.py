"""Multi-SLERP (Goddard, 2025): mean direction times mean length.

    u_i = x_i / (|x_i| + eps);   m = sum_i w_i u_i;   theta = (m / |m|) sum_i w_i |x_i|   (+ theta_0)

x_i are experts or task vectors as whole tensors. Where |m| <= eps: sum_i w_i x_i.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.values import each, with_preset

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"weight": 1.0, "normalize_weights": True, "eps": 0.0},
    "mergekit": {"eps": 1e-8},
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"weight": [0.5, 1.5, 0.25]},
    {"weight": [0.5, 0.75, 0.25], "normalize_weights": False, "base": False},
    {"preset": "mergekit", "weight": [1.0, 0.5, 0.25]},
    {"experts": 1},
]


def multislerp(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """Mean direction times mean length, tensor by tensor."""
    given = with_preset(parameters, PRESETS)
    merged = {}
    for name in family.places:
        origin = family.base[name] if given.get("base", True) else 0.0
        parts = [e[name] - origin for e in family.experts]
        weights = np.array(each(given, "weight", name, len(parts)))
        if given["normalize_weights"]:
            weights = weights / weights.sum()
        merged[name] = origin + _mean(parts, weights, given["eps"])
    return merged


def _mean(parts: list[np.ndarray], weights: np.ndarray, eps: float) -> np.ndarray:
    if len(parts) == 1:
        return parts[0]
    lengths = np.array([np.linalg.norm(x) for x in parts])
    direction = sum(
        w * x / (length + eps)
        for w, x, length in zip(weights, parts, lengths, strict=True)
        if length + eps > 0
    )
    size = np.linalg.norm(direction)
    if size <= eps:
        return sum(w * x for w, x in zip(weights, parts, strict=True))
    return direction / size * (weights @ lengths)
