"""ACE-Merging (Xu et al., CVPR 2026, arXiv:2603.02945), by the steps of its code.

    c_i = tau_i - mean of its rows,  S_i = c_i^T c_i,  e_i = epsilon;  t_i = ||tau_i||^2
    differ = var(log t) / mean(log t)^2 > threshold: S_i and e_i are divided by trace S_i, and m by mean t
    T = (sum c_i (S_i + e_i I)) (sum (S_i + e_i I) + 1 m^T)^-1,  m = column means of sum S_i
    differ: R = sum tau_i (S_i - mean (S_j + e_j I)) + T = U s V^T;  T += mean(s_1 .. s_k) U_k V_k^T

Embeddings, heads, whatever is no matrix and matrices of one row are averaged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.matrices import (
    PATHS,
    RULE_VARIANTS,
    RULES,
    cut,
    is_matrix,
    put_together,
    unmerged,
)
from ..shared.order import count
from ..shared.spectra import directions
from ..shared.values import each, shared, with_preset

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        **RULES,
        "embeddings": "average",
        "weight": 1.0,
        "epsilon": 0.01,
        "threshold": 0.3,
        "rank_share": 0.3,
        "targets": "centred",
        "lambda": 1.0,
    },
    "reference": {"exempt": "linear.text_projection", "embeddings": "spectral"},
}
# Above rounding, which decides where all norms are equal.
ALWAYS = {"threshold": 1e-9}
VARIANTS: list[dict[str, Any]] = [
    ALWAYS,
    {},
    {**ALWAYS, "weight": [1.0, 0.5, -2.0], "lambda": 0.7, "rank_share": 0.6},
    {"preset": "reference"},
    {"threshold": 1e6, "epsilon": 0.5, "targets": "whole"},
    {**ALWAYS, "targets": "whole", "rank_share": 0.0},
    {"experts": 1},
    *({**ALWAYS, **variant} for variant in RULE_VARIANTS),
    {**ALWAYS, "rank_tolerance": 0.3, "rank_share": 1.0},
    *({**ALWAYS, **path} for path in PATHS),
]
# An inverse of matrices whose least eigenvalue is epsilon, or some 1e-3 of the largest.
TOLERANCE = 1e-9
STRUCTURED = 3


def ace(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The weighed task vectors."""
    how = with_preset(parameters, PRESETS)
    result = {}
    for name, base in family.base.items():
        place, deltas = family.places[name], family.deltas(name)
        weights = each(how, "weight", name, len(deltas))
        blocks = (
            list(zip(*(cut(d, place, how) for d in deltas), strict=True)) if base.ndim > 1 else []
        )
        if is_matrix(place, how) and min(block[0].shape[0] for block in blocks) > 1:
            tasks = [[w * m for w, m in zip(weights, block, strict=True)] for block in blocks]
            change = put_together([_merged(one, how) for one in tasks], place, how)
        else:
            change = unmerged(deltas, weights, place, how)
        result[name] = base + shared(how, "lambda", name) * change
    return result


def _merged(tasks: list[np.ndarray], how: dict[str, Any]) -> np.ndarray:
    inputs, lengths = tasks[0].shape[1], np.array([(t**2).sum() for t in tasks])
    logs = np.log(lengths + 1e-12)
    gamma = logs.var(ddof=1) / (logs.mean() ** 2 + 1e-12) if len(tasks) > 1 else 0.0
    differ = gamma > how["threshold"]
    centred = [t - t.mean(0) for t in tasks]
    covariances = [c.T @ c for c in centred]
    traces = [np.trace(s) + 1e-12 if differ else 1.0 for s in covariances]
    covariances = [s / t for s, t in zip(covariances, traces, strict=True)]
    full = [
        s + how["epsilon"] / t * np.eye(inputs) for s, t in zip(covariances, traces, strict=True)
    ]
    means = sum(covariances).mean(0) / (lengths.mean() + 1e-12 if differ else 1.0)
    targets = centred if how["targets"] == "centred" else tasks
    first = sum(t @ s for t, s in zip(targets, full, strict=True))
    merged = first @ np.linalg.inv(sum(full) + np.outer(np.ones(inputs), means))
    rank = count(how["rank_share"], min(merged.shape))
    if not differ or not rank:
        return np.asarray(merged)
    mean = sum(full) / len(full)
    residual = merged + sum(t @ (s - mean) for t, s in zip(tasks, covariances, strict=True))
    found = directions(residual, rank, how["rank_tolerance"])
    return np.asarray(merged + found.values.mean() * found.left @ found.right)
