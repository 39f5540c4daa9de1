"""Singular value calibration (2026, arXiv:2602.05536).

    tau = lambda sum_i w_i tau_i = U S V^T,   a_ri = u_r^T tau_i,   s_ri = <S_r v_r, a_ri> / ||a_ri||^2
    theta = theta_0 + U diag(gamma_r S_r) V^T,   gamma_r = N_r / sum_i max(alpha, s_ri)

over the N_r tasks that respond in direction r at all. With `merged: first` tau is lambda times the change of the first
expert, and the others are the tasks. Tensors that are no matrix stay as merged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.matrices import (
    EXACT_RANKS,
    PATHS,
    RULES,
    cut,
    is_matrix,
    put_together,
    rule_of,
)
from ..shared.spectra import REAL, directions
from ..shared.values import each, shared, with_preset

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        **RULES,
        "others": "merged",
        "weight": 1.0,
        "alpha": 1.0,
        "merged": "sum",
        "lambda": 1.0,
    },
    "fusionbench": {"lambda": 0.3, "alpha": 0.1},
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"preset": "fusionbench"},
    {"alpha": 0.3, "weight": [1.0, -0.5, 2.0], "lambda": 0.7},
    {"alpha": 100.0},
    {"merged": "first", "lambda": 0.5},
    {"kernels": "matrix", "fused": "split", "others": "base"},
    {"stacks": "others", "embeddings": "merged"},
    {"orientation": "output_first", "embeddings": "base"},
    {"orientation": "input_first", "others": "base", "embeddings": "merged", "exempt": "mlp"},
    *PATHS,
]
# One decomposition; factors turn on quotients of inner products of its directions with the tasks.
TOLERANCE = 1e-10
STRUCTURED = 3
EXACT = EXACT_RANKS


def svc(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The sum of task vectors with calibrated singular values."""
    how = with_preset(parameters, PRESETS)
    result = {}
    for name, base in family.base.items():
        place, tasks = family.places[name], family.deltas(name)
        if how["merged"] == "first":
            merged, *tasks = tasks
        else:
            weights = each(how, "weight", name, len(tasks))
            merged = sum(w * t for w, t in zip(weights, tasks, strict=True))
        merged = shared(how, "lambda", name) * merged
        if is_matrix(place, how):
            groups = zip(*(cut(array, place, how) for array in (merged, *tasks)), strict=True)
            blocks = [_calibrated(m, rest, how) for m, *rest in groups]
            merged = put_together(blocks, place, how)
        elif rule_of(place, how) == "base":
            merged = 0.0 * merged
        result[name] = base + merged
    return result


def _calibrated(
    merged: np.ndarray, tasks: Sequence[np.ndarray], how: Mapping[str, Any]
) -> np.ndarray:
    left, values, right = directions(merged, tolerance=how["rank_tolerance"])
    gammas = np.ones(len(values))
    for r, value in enumerate(values):
        counts = []
        for task in tasks:
            answer = left[:, r] @ task
            if np.linalg.norm(answer) > REAL * np.linalg.norm(task):
                counts.append(max(how["alpha"], value * (right[r] @ answer) / (answer @ answer)))
        if sum(counts) > 0:
            gammas[r] = len(counts) / sum(counts)
    return merged + (left * ((gammas - 1.0) * values)) @ right
