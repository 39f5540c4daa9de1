"""DELLA (Deep et al., 2024, arXiv:2406.11617): MagPrune, elect signs, merge what agrees.

    tau^_i from MagPrune;   g = sign(sum_i w_i tau^_i);   theta = theta_0 + lambda * (mean of the w_i tau^_i of sign g)

Their adaptive lambda multiplies what the election leaves of a task vector by (number of elements before) / (left).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.consensus import disjoint
from ..shared.values import each, with_preset
from .della_linear import PRESETS as MAGPRUNE
from .della_linear import pruned

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        **MAGPRUNE["paper"],
        "normalize": "absolute",
        "zero_sum": "zero",
        "adaptive": "none",
    },
    "mergekit": {**MAGPRUNE["mergekit"], "normalize": "signed", "zero_sum": "positive"},
}
SKIPS = {"shares": "density and epsilon bound each other, so that few lists go with every variant"}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"density": [0.3, 0.5, 1.0], "epsilon": [0.2, 0.1, 0.0], "weight": [0.5, 1.0, 2.0]},
    {"ranking": "tensor", "density": 0.5, "epsilon": 0.3, "lambda": 0.6},
    {"ranking": "magnitude", "density": 0.5, "epsilon": 0.3, "normalize": "none"},
    {"adaptive": "row", "normalize": "none"},
    {"adaptive": "tensor", "weight": [0.5, 1.0, 2.0]},
    {"preset": "mergekit", "weight": [1.0, 0.5, 0.7], "density": 0.5},
]
# Task vectors divided by probabilities that depend on other elements cancel up to rounding only.
EQUAL = [v for v in VARIANTS if v.get("ranking") != "magnitude"]


def della(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The disjoint mean of what was kept."""
    given = with_preset(parameters, PRESETS)
    sparse = pruned(family, given)
    if given["adaptive"] != "none":
        sparse = _made_up(sparse, given)
    return disjoint(family, sparse, given)


def _made_up(
    sparse: dict[str, list[np.ndarray]], given: dict[str, Any]
) -> dict[str, list[np.ndarray]]:
    """Task vectors that agree with the election and are scaled for the elements that did not.

    The election afterwards has the same outcome, since what remains has the sign that was elected.
    """
    found: dict[str, list[np.ndarray]] = {}
    for name, parts in sparse.items():
        weights = each(given, "weight", name, len(parts))
        sign = np.sign(sum(w * p for w, p in zip(weights, parts, strict=True)))
        if given["zero_sum"] == "positive":
            sign = np.where(sign == 0, 1.0, sign)
        found[name] = []
        for weight, part in zip(weights, parts, strict=True):
            left = np.where(np.sign(weight * part) == sign, part, 0.0)
            per_row = given["adaptive"] == "row" and part.ndim > 1
            axis = -1 if per_row else None
            before = (part != 0).sum(axis=axis, keepdims=True)
            after = (left != 0).sum(axis=axis, keepdims=True)
            found[name].append(left * before / np.maximum(after, 1))
    return found
