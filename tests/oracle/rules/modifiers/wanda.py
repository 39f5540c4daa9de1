"""Wanda (ICLR 2024, arXiv:2306.11695) on task vectors.

S = |tau| or |theta| times the root of the mean square of the input; tau'_i = tau_i where S is among the
floor(density N) largest of the tensor or the model. Tensors of which nothing was measured stay as they are.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.order import count, largest, largest_by_share

if TYPE_CHECKING:
    from ...families import Family

STATISTICS = "channels:input_square"
VARIANTS: list[dict[str, Any]] = [
    {"density": 0.5, "scope": "tensor"},
    {"density": 0.3, "scope": "model"},
    {"density": 0.4, "scope": "tensor", "importance": "weight"},
    {"density": 1.0},
    {"density": 0.0, "scope": "tensor"},
]


def wanda(family: Family, parameters: dict) -> Family:
    """The family with what matters most of its task vectors."""
    share = parameters["density"]
    experts = []
    for expert, squares in zip(family.experts, family.statistics, strict=True):
        ranked = {n: expert[n] - family.base[n] for n in squares}
        if parameters.get("importance") == "weight":
            ranked = {n: expert[n] for n in squares}
        scores = {n: np.abs(x) * np.sqrt(squares[n]) for n, x in ranked.items()}
        sizes = {n: x.size for n, x in scores.items()}
        if parameters.get("scope") == "model":
            masks = largest_by_share(scores, dict.fromkeys(scores, share), sizes)
        else:
            masks = {
                n: largest(x, count(share, x.size)) & (x > 0) | (share >= 1.0)
                for n, x in scores.items()
            }
        made = {n: np.where(masks.get(n, True), x, family.base[n]) for n, x in expert.items()}
        experts.append(made)
    return replace(family, experts=experts)
