"""Arcee Fusion (as published in mergekit, 2024).

    p = softmax(theta_1) + 1e-8,  q = softmax(theta_0) + 1e-8       over the last axis
    importance = |theta_1 - theta_0| * sum_last p log(p / q)
    theta = theta_1 where importance >= median + 1.5 (q3 - q1), else theta_0

A quantile is the element floor(q (m - 1)) of the m sorted importances. A threshold of zero takes the expert.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ...families import Family

EXPERTS = 1
VARIANTS: list[dict[str, Any]] = [{}, {"preset": "mergekit"}]


def arcee_fusion(family: Family, _: dict) -> dict[str, np.ndarray]:
    """Important weights of the expert."""
    (expert,) = family.experts
    merged = {}
    for name in family.places:
        mine, base = (np.atleast_1d(x[name]).astype(np.longdouble) for x in (expert, family.base))
        p, q = _softmax(mine) + 1e-8, _softmax(base) + 1e-8
        importance = np.abs(mine - base) * (p * np.log(p / q)).sum(axis=-1, keepdims=True)
        ordered = np.sort(importance, axis=None)
        low, middle, high = (
            ordered[int(np.floor(share * (ordered.size - 1)))] for share in (0.25, 0.5, 0.75)
        )
        threshold = middle + 1.5 * (high - low)
        taken = (importance >= threshold) | (threshold == 0)
        merged[name] = np.where(taken.reshape(expert[name].shape), expert[name], family.base[name])
    return merged


def _softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)
