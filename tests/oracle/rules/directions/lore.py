"""LoRE-Merging (EMNLP Findings 2025, arXiv:2502.10749), algorithm 1.

    delta_i = 0
    steps times:  theta_0 = mean (theta_i - delta_i);   delta_i = U max(S - mu, 0) V^T of theta_i - theta_0
    theta = theta_0 + lambda sum_i w_i delta_i / sum_i w_i

Whatever is no matrix: the average with the weights. Kernels are matrices (outputs, all others).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.matrices import LOOKED_UP
from ..shared.values import each, shared, with_preset

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"mu": 0.01, "steps": 20, "weight": 1.0, "lambda": 1.0, "embeddings": "spectral"}
}
VARIANTS: list[dict[str, Any]] = [
    {"mu": 0.1},
    {},
    {"mu": 0.05, "steps": 3, "weight": [0.5, 2.0, 1.0], "lambda": 0.6},
    {"mu": 0.0, "lambda": 0.5},
    {"mu": 50.0},
    {"mu": 0.1, "embeddings": "average", "svd": "exact"},
    {"mu": 0.1, "svd": "gram"},
    {"experts": 1},
]
# Sixty decompositions after one another.
TOLERANCE = 1e-10
STRUCTURED = 2


def lore(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The estimate, matrix by matrix."""
    how = with_preset(parameters, PRESETS)
    merged = {}
    for name in family.base:
        place, experts = family.places[name], [expert[name] for expert in family.experts]
        weights = np.array(each(how, "weight", name, len(experts)))
        weights = weights / weights.sum()
        is_averaged = place.role in LOOKED_UP and how["embeddings"] == "average"
        if len(place.shape) < 2 or is_averaged:
            merged[name] = sum(w * e for w, e in zip(weights, experts, strict=True))
            continue
        count = place.shape[0] if len(place.shape) == 3 else 1
        rows = place.shape[1] if len(place.shape) == 3 else place.shape[0]
        stacks = [expert.reshape(count, rows, -1) for expert in experts]
        made = [
            _estimate([stack[k] for stack in stacks], weights, shared(how, "lambda", name), how)
            for k in range(count)
        ]
        merged[name] = np.stack(made).reshape(place.shape)
    return merged


def _estimate(
    experts: list[np.ndarray], weights: np.ndarray, factor: float, how: dict[str, Any]
) -> np.ndarray:
    changes = [np.zeros_like(expert) for expert in experts]
    base = experts[0]
    for _ in range(how["steps"]):
        base = np.mean([e - c for e, c in zip(experts, changes, strict=True)], axis=0)
        changes = [_shrunk(expert - base, how["mu"]) for expert in experts]
    return base + factor * sum(w * c for w, c in zip(weights, changes, strict=True))


def _shrunk(matrix: np.ndarray, mu: float) -> np.ndarray:
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    return np.asarray((left * np.maximum(values - mu, 0.0)) @ right)
