"""The geometric median of the experts, per tensor (Weiszfeld, 1937; smoothed: Pillutla et al., arXiv:1912.13445).

    theta = argmin_x sum_i w_i |x - theta_i|

A point that holds more than the others pull is the median itself; else it is found by Weiszfeld's steps and then by
Newton's. Of two experts of equal weight, up to its rounding, it is the mean.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.values import each

if TYPE_CHECKING:
    from ...families import Family

# Two searches for the minimum of a function that is flat there.
TOLERANCE = 1e-8
APPROACH = 300
STEPS = 40
VARIANTS: list[dict[str, Any]] = [
    {"experts": 2},
    {},
    {"weight": [0.5, 0.6, 0.4]},
    {"weight": [3.0, 1.0, 1.0]},
    {"experts": 4, "weight": [0.5, 0.6, 0.4, 0.45]},
    {"experts": 1},
]


def geometric_median(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The point of least weighted distance."""
    merged = {}
    for name in family.places:
        points = np.stack([np.ravel(e[name]) for e in family.experts])
        weights = np.array(each({"weight": 1.0, **parameters}, "weight", name, len(points)))
        even = len(points) == 2 and math.isclose(*weights, rel_tol=1e-14)
        found = points.mean(axis=0) if even else _median(points, weights)
        merged[name] = found.reshape(family.places[name].shape)
    return merged


def _median(points: np.ndarray, weights: np.ndarray) -> np.ndarray:
    for k, point in enumerate(points):
        if _is_optimal(k, points, weights):
            return point
    # Weiszfeld's steps, then Newton's, in the plane (space) through the points: away from them the sum is smooth.
    basis, _ = np.linalg.qr((points[1:] - points[0]).T)
    flat = (points - points[0]) @ basis
    x = weights @ flat / weights.sum()
    for _ in range(APPROACH):
        pull = weights / np.linalg.norm(x - flat, axis=1)
        x = pull @ flat / pull.sum()
    for _ in range(STEPS):
        away = x - flat
        lengths = np.linalg.norm(away, axis=1)
        units = away / lengths[:, None]
        slope = weights @ units
        across = np.eye(flat.shape[1]) - units[:, :, None] * units[:, None, :]
        curve = ((weights / lengths)[:, None, None] * across).sum(axis=0)
        step = -np.linalg.solve(curve, slope)
        size = 1.0
        while size > 1e-12 and _total(x + size * step, flat, weights) > _total(x, flat, weights):
            size /= 2
        x = x + size * step
    return points[0] + basis @ x


def _total(x: np.ndarray, points: np.ndarray, weights: np.ndarray) -> float:
    return float(weights @ np.linalg.norm(x - points, axis=1))


def _is_optimal(k: int, points: np.ndarray, weights: np.ndarray) -> bool:
    """Whether the others do not pull harder at a point than it holds."""
    away = points - points[k]
    lengths = np.linalg.norm(away, axis=1)
    apart = lengths > 0
    pull = (weights[apart] / lengths[apart]) @ away[apart]
    return bool(np.linalg.norm(pull) <= weights[~apart].sum())
