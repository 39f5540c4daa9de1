"""Cosine B (sd-mecha's add_cosine_b; supermerger's cosineB likewise).

theta = theta_1 (1 - k) + theta_0 k,   k = clip((s - lowest) / (highest - lowest) - alpha, 0, 1)
s = (cosine similarity along the first axis + cosine of the tensors as vectors) / 2
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .cosine_a import mixed, normalised

if TYPE_CHECKING:
    from ...families import Family

EXPERTS = 1
VARIANTS: list[dict[str, Any]] = [{}, {"alpha": 0.2, "lowest": 0.3, "highest": 0.99}]


def cosine_b(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """By cosines of columns and of tensors."""

    def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        columns = (normalised(a) * normalised(b)).sum(axis=0)
        whole = (a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b))
        return (columns + whole) / 2

    return mixed(family, parameters, similarity)
