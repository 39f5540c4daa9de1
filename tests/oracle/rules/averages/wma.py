"""Linearly weighted moving average (Li et al., 2025, arXiv:2505.12082): sum_j j theta_j / sum_j j."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from ...families import Family

VARIANTS: list[dict[str, Any]] = [{}, {"experts": 4}]


def wma(family: Family, _: dict) -> dict[str, np.ndarray]:
    """The j-th checkpoint weighs j."""
    weights = range(1, len(family.experts) + 1)
    return {
        n: sum(j * e[n] for j, e in zip(weights, family.experts, strict=True)) / sum(weights)
        for n in family.places
    }
