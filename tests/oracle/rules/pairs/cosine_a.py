"""Cosine A (sd-mecha's add_cosine_a; supermerger's cosineA with the extremes of the model as `lowest` and `highest`).

theta = theta_1 (1 - k) + theta_0 k,   k = clip((s - lowest) / (highest - lowest) - alpha, 0, 1)
s = cosine similarity along the first axis; with_mean: its average with the one of the tensors whose columns have
length 1, as vectors
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ...families import Family

EXPERTS = 1
VARIANTS: list[dict[str, Any]] = [
    {},
    {"alpha": 0.2, "lowest": 0.3, "highest": 0.99},
    {"preset": "supermerger"},
    {"alpha": 0.1, "with_mean": True},
]


def cosine_a(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """By cosines of columns."""
    with_mean = parameters.get("with_mean", parameters.get("preset") == "supermerger")

    def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        unit_a, unit_b = normalised(a), normalised(b)
        columns = (unit_a * unit_b).sum(axis=0)
        if not with_mean:
            return columns
        lengths = np.linalg.norm(unit_a) * np.linalg.norm(unit_b)
        return (columns + (unit_a * unit_b).sum() / lengths) / 2

    return mixed(family, parameters, similarity)


def normalised(matrix: np.ndarray) -> np.ndarray:
    """Columns of length 1."""
    return matrix / np.linalg.norm(matrix, axis=0, keepdims=True)


def mixed(family: Family, parameters: dict, similarity: Any) -> dict[str, np.ndarray]:
    """The base where it is like the expert."""
    given = {"alpha": 0.5, "lowest": 0.0, "highest": 1.0, **parameters}
    merged = {}
    for name in family.places:
        shape = family.base[name].shape
        a, b = (
            one[name].reshape(shape[0] if shape else 1, -1)
            for one in (family.base, *family.experts)
        )
        scaled = (similarity(a, b) - given["lowest"]) / (given["highest"] - given["lowest"])
        k = np.clip(scaled - given["alpha"], 0, 1)
        merged[name] = (b * (1 - k) + a * k).reshape(shape)
    return merged
