"""ResMerge (2026, arXiv:2606.02252), by the steps of its code.

    w_i tau_i = h_i + e_i, h_i its k strongest triplets;  q_i = e_i / ||e_i||
    c = mean cos(q_i, sum q), s = mean cos(q_i, q_j);  c <= 1 / sqrt N: b = mean e_i, else
    b = c^beta mean ||e_i|| (sum q) / ||sum q||
    beta = beta_max - (beta_max - beta_min) ((s + 1) / 2 + (c + 1) / 2) / 2
    theta = theta_0 + lambda (b + budget mean max(0, cos(h_i, h_j)) ||b|| (mean h) / ||mean h||)

beta = beta_max but in attention and MLPs. Embeddings, heads and whatever is no matrix are averaged.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.matrices import (
    EXACT_RANKS,
    PATHS,
    RULE_VARIANTS,
    RULES,
    cut,
    is_matrix,
    put_together,
    unmerged,
)
from ..shared.spectra import directions
from ..shared.values import each, shared, with_preset

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        **RULES,
        "embeddings": "average",
        "weight": 1.0,
        "k": 1,
        "beta_min": 0.7,
        "beta_max": 1.0,
        "budget": 0.2,
        "scored": "attention mlp expert",
        "lambda": 1.0,
    },
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"k": 2, "weight": [1.0, 0.5, 2.0], "lambda": 0.7},
    {"k": 0, "beta_min": 0.2, "budget": 0.5},
    {"weight": [1.0, -1.0, 1.0], "budget": 2.0, "beta_max": 3.0},
    {"scored": "attention.q", "beta_min": 0.0},
    {"embeddings": "spectral"},
    {"experts": 1},
    *RULE_VARIANTS,
    {"k": 3, "rank_tolerance": 0.6},
    *PATHS,
]
TOLERANCE = 1e-10
STRUCTURED = 3
EXACT = EXACT_RANKS


def resmerge(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The consensus of residuals and the heads' share."""
    how = with_preset(parameters, PRESETS)
    result = {}
    for name, base in family.base.items():
        place, deltas = family.places[name], family.deltas(name)
        weights = each(how, "weight", name, len(deltas))
        if is_matrix(place, how):
            is_scored = any(f"{place.role}.".startswith(f"{r}.") for r in how["scored"].split())
            groups = zip(*(cut(d, place, how) for d in deltas), strict=True)
            change = put_together(
                [_merged(list(group), weights, is_scored, how) for group in groups], place, how
            )
        else:
            change = unmerged(deltas, weights, place, how)
        result[name] = base + shared(how, "lambda", name) * change
    return result


def _merged(
    tasks: list[np.ndarray], weights: list[float], is_scored: bool, how: dict[str, Any]
) -> np.ndarray:
    heads = [
        w * directions(t, how["k"], how["rank_tolerance"]).matrix()
        for t, w in zip(tasks, weights, strict=True)
    ]
    residuals = [w * t - h for t, w, h in zip(tasks, weights, heads, strict=True)]
    if all(np.linalg.norm(e) < 1e-12 for e in residuals):
        return np.zeros_like(tasks[0])
    backbone = _backbone(residuals, is_scored, how)
    mean = np.mean(heads, axis=0)
    real = [h for h in heads if h.any()]
    if not real or np.linalg.norm(mean) < 1e-12:
        return backbone
    pairs = [max(0.0, _cosine(a, b)) for a, b in combinations(real, 2)]
    share = how["budget"] * (np.mean(pairs) if pairs else 1.0) * np.linalg.norm(backbone)
    return np.asarray(backbone + share * mean / np.linalg.norm(mean))


def _backbone(residuals: list[np.ndarray], is_scored: bool, how: dict[str, Any]) -> np.ndarray:
    lengths = [float(np.linalg.norm(e)) for e in residuals]
    units = [
        e / length if length > 1e-12 else 0.0 * e
        for e, length in zip(residuals, lengths, strict=True)
    ]
    summed = sum(units)
    coherence = float(np.mean([_cosine(q, summed) for q in units]))
    if coherence <= (1 + 1e-12) / np.sqrt(len(units)):
        return np.asarray(np.mean(residuals, axis=0))
    alike = float(np.mean([_cosine(a, b) for a, b in combinations(units, 2)]))
    score = ((alike + 1) / 2 + (coherence + 1) / 2) / 2 if is_scored else 0.0
    beta = how["beta_max"] - (how["beta_max"] - how["beta_min"]) * score
    return np.asarray(coherence**beta * np.mean(lengths) * summed / np.linalg.norm(summed))


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return float((a * b).sum() / lengths) if lengths else 0.0
