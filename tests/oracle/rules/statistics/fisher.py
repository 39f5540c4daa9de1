"""Fisher-weighted averaging (Matena and Raffel, NeurIPS 2022, arXiv:2111.09832).

    theta = sum_i w_i F_i theta_i / sum_i w_i F_i,   F_i = E g_i^2, divided by its norm over the model or the tensor

Where all F_i are 0: the mean of the experts, or the first of them (uninformed). The authors' code raises the first
Fisher to at least 1e-6, after its norm was taken (reference); MergeLM's and Bloomberg's add a constant to all Fishers,
and to their norms. Tensors without Fishers: the average with weights w_i.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.averages import average, model_norm, squares
from ..shared.values import each, with_preset

if TYPE_CHECKING:
    from ...families import Family

STATISTICS = "fisher"
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "weight": 1.0,
        "normalize": "model",
        "floor": 0.0,
        "floor_on": "first",
        "smoothing": 0.0,
        "uninformed": "average",
    },
    "reference": {"floor": 1e-6, "uninformed": "first"},
    "mergelm": {"smoothing": 1e-6},
    "bloomberg": {"normalize": "tensor", "smoothing": 1e-10},
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"preset": "reference"},
    {"preset": "mergelm"},
    {"preset": "bloomberg"},
    {"statistics": "adam"},
    {"statistics": "gradients"},
    {"statistics": "gradients", "normalize": "tensor", "weight": [0.5, 2.0, 1.0]},
    {"normalize": "none", "weight": [1.0, 0.0, 3.0]},
    {"normalize": "tensor", "floor": 1e-6, "floor_on": "all"},
    {"normalize": "none", "floor": 2e-6, "smoothing": 1e-6, "uninformed": "first"},
    {"uninformed": "first", "weight": [0.5, 1.0, 2.0]},
]
# Sums of a few float64 numbers.
TOLERANCE = 1e-12
STRUCTURED = 3


def fisher(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The averages by element."""
    how = with_preset(parameters, PRESETS)
    fishers = squares(family)
    merged = {}
    for name in family.base:
        own = [expert[name] for expert in family.experts]
        weights = each(how, "weight", name, len(own))
        if name not in fishers[0]:
            merged[name] = average(own, weights)
            continue
        counted = [
            w * _weight(f, name, i, how)
            for i, (w, f) in enumerate(zip(weights, fishers, strict=True))
        ]
        found = average(own, counted)
        unknown = own[0] if how["uninformed"] == "first" else np.mean(own, axis=0)
        merged[name] = np.where(np.isnan(found), unknown, found)
    return merged


def _weight(
    fishers: Mapping[str, np.ndarray], name: str, expert: int, how: Mapping[str, Any]
) -> np.ndarray:
    raised = fishers[name]
    if expert == 0 or how["floor_on"] == "all":
        raised = np.maximum(raised, how["floor"])
    raised = raised + how["smoothing"]
    if how["normalize"] == "none":
        return raised
    norm = model_norm(fishers if how["normalize"] == "model" else {name: fishers[name]})
    length = norm + how["smoothing"]
    return raised / length if length else raised
