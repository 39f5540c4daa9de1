"""Norm clipping of experts (Sun et al., 2019, arXiv:1911.07963).

tau'_i = tau_i min(1, c / ||tau_i||);   c = limit reference_j ||tau_j|| over the experts that changed at all, or limit
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ...families import Family, Place

VARIANTS: list[dict[str, Any]] = [
    {"limit": 0.8},
    {"limit": 0.7, "scope": "model"},
    {"limit": 0.9, "scope": "layer", "reference": "mean"},
    {"limit": 1.0, "reference": "smallest"},
    {"limit": 0.5, "reference": "one", "scope": "model"},
]
_REFERENCES = {"median": np.median, "mean": np.mean, "smallest": np.min}


def clip(family: Family, parameters: dict) -> Family:
    """The family with shorter task vectors."""
    given = {"limit": 1.0, "reference": "median", "scope": "tensor", **parameters}
    groups: dict[Any, list[str]] = {}
    for name, place in family.places.items():
        groups.setdefault(_group(place, given["scope"]), []).append(name)
    experts: list[dict[str, np.ndarray]] = [{} for _ in family.experts]
    for names in groups.values():
        norms = [
            np.sqrt(sum(np.square(e[n] - family.base[n]).sum() for n in names))
            for e in family.experts
        ]
        changed = [x for x in norms if x > 0]
        bound = given["limit"]
        if given["reference"] != "one" and changed:
            bound *= _REFERENCES[given["reference"]](changed)
        for made, expert, norm in zip(experts, family.experts, norms, strict=True):
            for n in names:
                factor = bound / norm if norm > bound else 1.0
                made[n] = family.base[n] + factor * (expert[n] - family.base[n])
    return replace(family, experts=experts)


def _group(place: Place, scope: str) -> Any:
    if scope == "model":
        return ""
    inside = scope == "layer" and place.layer is not None
    return (place.stack, place.layer) if inside else place.name
