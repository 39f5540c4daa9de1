"""Coordinate-wise trimmed mean (Yin et al., ICML 2018, arXiv:1803.01498).

theta = 1/(N - 2k) sum_{j = k+1..N-k} theta_(j)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ...families import Family

VARIANTS: list[dict[str, Any]] = [{}, {"k": 0}, {"experts": 4}]
EQUAL = VARIANTS


def trimmed_mean(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The mean of what lies between the k smallest and the k largest."""
    k, count = parameters.get("k", 1), len(family.experts)
    ordered = {n: np.sort([e[n] for e in family.experts], axis=0) for n in family.places}
    return {n: x[k : count - k].sum(axis=0) / (count - 2 * k) for n, x in ordered.items()}
