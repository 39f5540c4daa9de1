"""OrthoMerge (2026, arXiv:2602.05943), forms C and G with residuals added up.

    X_i = theta_0 + tau_i in rows where tau_i points against sum tau_j (or in all), theta_0 elsewhere
    R_i = U V^T of theta_0^T X_i;   A_i = (R_i + I)^-1 (R_i - I)
    A = mean of ||A_i|| times sum A_i / ||sum A_i||, both weighted;   R = (I - A)^-1 (I + A)
    theta = theta_0 R + lambda sum_i w_i (theta_i - theta_0 R_i)

Where theta_0^T X_i has no directions R_i is the limit of that of theta_0^T X_i + d I for small d. Whatever is no
matrix: lambda times the sum of task vectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.matrices import PATHS, RULE_VARIANTS, RULES, cut, is_matrix, put_together, unmerged
from ..shared.spectra import REAL
from ..shared.values import each, shared, with_preset

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {**RULES, "others": "sum", "weight": 1.0, "rows": "conflicting", "lambda": 0.2},
    "global": {"rows": "all"},
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"preset": "global"},
    {"weight": [1.0, 0.5, 2.0], "lambda": 0.7},
    {"preset": "global", "weight": [1.0, -0.5, 0.0], "lambda": 0.0},
    {"experts": 1},
    *RULE_VARIANTS,
    *PATHS,
]
# The rotation of a matrix divides by its squared singular values.
TOLERANCE = 1e-7
STRUCTURED = 2


def orthomerge(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The rotated base and what is left."""
    how = with_preset(parameters, PRESETS)
    result = {}
    for name, base in family.base.items():
        place, deltas = family.places[name], family.deltas(name)
        weights, factor = each(how, "weight", name, len(deltas)), shared(how, "lambda", name)
        if not is_matrix(place, how):
            result[name] = base + factor * unmerged(deltas, weights, place, how)
            continue
        blocks = zip(*(cut(array, place, how) for array in (base, *deltas)), strict=True)
        made = [_merged(b, list(tasks), weights, factor, how["rows"]) for b, *tasks in blocks]
        result[name] = put_together(made, place, how)
    return result


def _merged(
    base: np.ndarray, tasks: list[np.ndarray], weights: list[float], factor: float, rows: str
) -> np.ndarray:
    together, unit = sum(tasks), np.eye(base.shape[1])
    rotations = []
    for task in tasks:
        against = (task * together).sum(1) < 0 if rows == "conflicting" else np.ones(len(task)) > 0
        target = base + task * against[:, None]
        rotations.append(_rotation(base.T @ target) if (target != base).any() else unit)
    # A reflection has an eigenvalue -1, for which there is no A_i: the pseudo-inverse leaves it out.
    skews = [np.linalg.pinv(r + unit, rcond=1e-9) @ (r - unit) for r in rotations]
    summed = sum(w * a for w, a in zip(weights, skews, strict=True))
    lengths = [abs(w) * np.linalg.norm(a) for w, a in zip(weights, skews, strict=True)]
    rotation = unit
    if np.linalg.norm(summed) > REAL:
        size = sum(lengths) / sum(map(abs, weights))
        skew = size * summed / np.linalg.norm(summed)
        rotation = np.linalg.solve(unit - skew, unit + skew)
    left = sum(w * (base + t - base @ r) for w, t, r in zip(weights, tasks, rotations, strict=True))
    return np.asarray(base @ rotation + factor * left)


def _rotation(matrix: np.ndarray) -> np.ndarray:
    left, values, right = np.linalg.svd(matrix)
    rank = int((values > REAL * values[0]).sum())
    rotation = left[:, :rank] @ right[:rank]
    null_left, null_right = left[:, rank:], right[rank:]
    u, _, v = np.linalg.svd(null_left.T @ null_right.T)
    return np.asarray(rotation + null_left @ u @ v @ null_right)
