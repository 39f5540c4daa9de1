"""How much of a model's layers an expert changed."""

from __future__ import annotations

from typing import Any

import numpy as np


def stacks_of(family: Any) -> dict[str, int]:
    """The stacks of layers and their depths."""
    return {p.stack: p.layers for p in family.places.values() if p.layer is not None}


def layer_changes(family: Any, expert: int, stack: str, measure: str) -> dict[int, float]:
    """||tau^l|| / ||theta_0^l|| (relative) or ||tau^l|| (norm), over all tensors of each layer."""
    changed: dict[int, float] = {}
    size: dict[int, float] = {}
    for name, place in family.places.items():
        if place.stack == stack and place.layer is not None:
            delta, base = family.deltas(name)[expert], family.base[name]
            changed[place.layer] = changed.get(place.layer, 0.0) + np.square(delta).sum()
            size[place.layer] = size.get(place.layer, 0.0) + np.square(base).sum()
    if measure == "norm":
        return {layer: float(np.sqrt(x)) for layer, x in changed.items()}
    return {layer: float(np.sqrt(x / size[layer])) for layer, x in changed.items()}
