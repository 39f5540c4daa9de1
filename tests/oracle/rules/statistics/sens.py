"""Sens-Merging (ACL Findings 2025, arXiv:2502.12420) with mean |gradients| of each expert on its own data.

    s_i^l = sum over the layer of |theta_i| E |g_i|;   alpha_i = s_i / ||s_i||_2 over all layers
    sigma_i^l = softmax over experts of alpha_i^l t_i / T, t_i = transfer_i / sum transfer
    theta = theta_0 + lambda sum_i N sigma_i^l w_i tau_i,   or the mean over what agrees in sign (reduce: ties)

A layer is a block of a stack; a tensor outside of stacks is one by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.values import each, shared, with_preset

if TYPE_CHECKING:
    from ...families import Family, Place

STATISTICS = "gradients:absolute"
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "temperature": 1.0,
        "transfer": 1.0,
        "weight": 1.0,
        "reduce": "sum",
        "lambda": 1.0,
    },
    "l2s_1.5b": {"temperature": 3.0, "lambda": 0.4},
    "l2s_7b": {"temperature": 2.0, "lambda": 0.7},
    "l2s_14b": {"temperature": 6.0, "lambda": 0.8},
}
VARIANTS: list[dict[str, Any]] = [
    {"temperature": 0.02},
    {},
    {"preset": "l2s_1.5b"},
    {"preset": "l2s_7b"},
    {"preset": "l2s_14b"},
    {"temperature": 0.05, "transfer": [3.0, 1.0, 2.5], "weight": [0.5, 1.0, -1.0]},
    {"temperature": 0.05, "reduce": "ties", "lambda": 0.6},
    {"temperature": 1e-5},
    {"experts": 1},
]
# Exponentials of sums.
TOLERANCE = 1e-11
STRUCTURED = 2


def sens(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """Task vectors weighed by layer."""
    how = with_preset(parameters, PRESETS)
    count = len(family.experts)
    layers: dict[str, list[str]] = {}
    for name, place in family.places.items():
        layers.setdefault(_layer(place), []).append(name)
    sensitivities = np.array(
        [
            [
                sum((np.abs(expert[n]) * own[n]).sum() for n in names if n in own)
                for names in layers.values()
            ]
            for expert, own in zip(family.experts, family.statistics, strict=True)
        ]
    )  # [experts, layers]
    alphas = sensitivities / np.linalg.norm(sensitivities, axis=1, keepdims=True)
    transfer = np.array(each(how, "transfer", "", count))
    scores = alphas * (transfer / transfer.sum())[:, None] / how["temperature"]
    raised = np.exp(scores - scores.max(0))
    sigmas = dict(zip(layers, (count * raised / raised.sum(0)).T, strict=True))
    merged = {}
    for name, base in family.base.items():
        weights = np.array(each(how, "weight", name, count)) * sigmas[_layer(family.places[name])]
        weighed = [w * d for w, d in zip(weights, family.deltas(name), strict=True)]
        change = sum(weighed)
        if how["reduce"] == "ties":
            agree = [np.sign(v) == np.sign(change) for v in weighed]
            kept = sum(a * v for a, v in zip(agree, weighed, strict=True))
            change = kept / np.maximum(sum(a.astype(float) for a in agree), 1.0)
        merged[name] = base + shared(how, "lambda", name) * change
    return merged


def _layer(place: Place) -> str:
    return place.name if place.layer is None else f"{place.stack}.{place.layer}"
