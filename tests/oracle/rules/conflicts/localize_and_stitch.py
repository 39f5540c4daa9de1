"""Localize-and-Stitch without data (He et al., TMLR 2025, arXiv:2408.13656).

    m_i = the floor(density N) elements of largest |tau_i|, N over all merged tensors of the model
    theta = theta_0 + lambda sum_i m_i tau_i / sum_i m_i;      with a task t: theta_0 + lambda m_t (the same)

Tensors of excluded roles stay at the base and do not count; the authors' code excludes embeddings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.order import count, largest_of_model
from ..shared.values import each, with_preset

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"density": 0.1, "lambda": 1.0, "exclude": "", "task": ""},
    "language_models": {"exclude": "embedding position_embedding type_embedding"},
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"density": [0.05, 0.4, 0.2], "lambda": 0.7},
    {"preset": "language_models", "density": 0.3},
    {"exclude": "norm attention", "density": 0.2},
    {"task": "2", "density": 0.4},
    {"density": 1.0},
    {"experts": 1, "density": 0.3},
]
EQUAL = VARIANTS


def localize_and_stitch(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The mean of the regions, where any lies."""
    given = with_preset(parameters, PRESETS)
    merged = {n: family.base[n] for n in family.places}
    taken = [n for n, p in family.places.items() if not _excluded(p.role, given["exclude"])]
    masks = [_region(family, i, taken, given["density"]) for i in range(len(family.experts))]
    for name in taken:
        number = sum(m[name].astype(int) for m in masks)
        total = sum(m[name] * d for m, d in zip(masks, family.deltas(name), strict=True))
        change = total / np.maximum(number, 1)
        if given["task"]:
            change = change * masks[int(given["task"]) - 1][name]
        merged[name] = family.base[name] + given["lambda"] * change
    return merged


def _region(family: Family, i: int, names: list[str], density: Any) -> dict[str, np.ndarray]:
    """m_i, with a threshold of its own for each share that tensors are given."""
    count_of = len(family.experts)
    shares = {n: each({"density": density}, "density", n, count_of)[i] for n in names}
    found = {}
    for share in dict.fromkeys(shares.values()):
        deltas = {n: family.deltas(n)[i] for n in names if shares[n] == share}
        chosen = largest_of_model(deltas, count(share, sum(d.size for d in deltas.values())))
        # With everything selected the paper's masks are ones; else no region has elements that the task left alone.
        found |= {n: m & ((deltas[n] != 0) | (share == 1)) for n, m in chosen.items()}
    return found


def _excluded(role: str, words: str) -> bool:
    return any(f"{role}.".startswith(f"{word}.") for word in words.split())
