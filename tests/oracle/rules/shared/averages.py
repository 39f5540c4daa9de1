"""Averages with a weight per element, and mean squared gradients in whatever form they were stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ...families import Family


def squares(family: Family) -> list[dict[str, np.ndarray]]:
    """E g^2 of every element and expert: as measured, or the mean over a list of single samples."""
    return [
        {
            name: np.mean(np.square(x), axis=0) if isinstance(x, list) else x
            for name, x in own.items()
        }
        for own in family.statistics
    ]


def average(values: Sequence[np.ndarray], weights: Sequence[Any]) -> np.ndarray:
    """sum_i q_i x_i / sum_i q_i, and NaN where all q_i are 0."""
    total = np.asarray(sum(weights) + 0.0 * values[0])
    weighted = sum(w * v for w, v in zip(weights, values, strict=True))
    return np.where(total > 0.0, weighted / np.where(total > 0.0, total, 1.0), np.nan)


def model_norm(tensors: Mapping[str, np.ndarray]) -> float:
    """The Euclidean norm of all tensors together."""
    return float(np.sqrt(sum((tensor**2).sum() for tensor in tensors.values())))
