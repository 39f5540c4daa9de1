"""The k smallest and the k largest values of each element give way to the mean of the others.

Equal values are ranked in the order of the experts (Yin et al., ICML 2018, arXiv:1803.01498).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ...families import Family

VARIANTS: list[dict[str, Any]] = [{}, {"k": 0}]


def trimmed(family: Family, parameters: dict) -> Family:
    """Experts without extremes."""
    k, number = parameters.get("k", 1), len(family.experts)
    experts: list[dict[str, np.ndarray]] = [{} for _ in family.experts]
    for name in family.places:
        stacked = np.stack([e[name] for e in family.experts])
        ranks = np.argsort(np.argsort(stacked, axis=0, kind="stable"), axis=0)
        middle = (ranks >= k) & (ranks < number - k)
        mean = np.where(middle, stacked, 0.0).sum(axis=0) / (number - 2 * k)
        for made, values, inside in zip(experts, stacked, middle, strict=True):
            made[name] = np.where(inside, values, mean)
    return replace(family, experts=experts)
