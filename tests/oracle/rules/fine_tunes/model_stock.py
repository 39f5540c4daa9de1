"""Model Stock (Jang et al., ECCV 2024, arXiv:2403.19522).

    c = mean over pairs of <d_i, d_j> / (|d_i| |d_j|);   t = N c / (1 + (N - 1) c)
    theta = theta_0 + t (1/N) sum_i d_i

Per tensor, or per row. The paper's angle lies between 0 and 90 degrees; mergekit does not bound it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.values import with_preset

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "filter_wise": False,
        "bounded": True,
        "mean": "cosine",
        "smallest_norm_product": 0.0,
    },
    "mergekit": {"bounded": False, "smallest_norm_product": 1e-6},
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"filter_wise": True},
    {"mean": "angle", "experts": 4},
    {"preset": "mergekit", "experts": 2},
    {"smallest_norm_product": 0.5},
    {"experts": 2, "filter_wise": True, "mean": "angle"},
]


def model_stock(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """As far from the base as the experts agree."""
    given = with_preset(parameters, PRESETS)
    merged = {}
    for name, place in family.places.items():
        deltas = np.stack(family.deltas(name))
        count = len(deltas)
        rows = place.shape[-1] if given["filter_wise"] and place.shape else deltas[0].size
        vectors = deltas.reshape(count, -1, rows)
        share = _share(vectors, given)
        merged[name] = family.base[name] + (share[:, None] * vectors.mean(axis=0)).reshape(
            place.shape
        )
    return merged


def _share(vectors: np.ndarray, given: dict[str, Any]) -> np.ndarray:
    """t of every row of N task vectors."""
    count = len(vectors)
    found = []
    for i in range(count):
        for j in range(i):
            product = np.linalg.norm(vectors[i], axis=-1) * np.linalg.norm(vectors[j], axis=-1)
            product = np.maximum(product, given["smallest_norm_product"])
            dot = (vectors[i] * vectors[j]).sum(axis=-1)
            found.append(np.divide(dot, product, out=np.zeros_like(dot), where=product > 0))
    if given["mean"] == "angle":
        cosine = np.cos(np.mean(np.arccos(np.clip(found, -1, 1)), axis=0))
    else:
        cosine = np.mean(found, axis=0)
    if given["bounded"]:
        cosine = np.clip(cosine, 0, 1)
    return count * cosine / (1 + (count - 1) * cosine)
