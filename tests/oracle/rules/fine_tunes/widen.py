"""WIDEN, weight disentanglement (Yu et al., 2024, arXiv:2408.03092).

    m = norms of the columns,  D = W / m;   dm_i = |m_i - m_0|,   dD_i = 1 - cos(D_i, D_0)
    r_i = rank of dm_i (of dD_i) within expert i / columns
    S_i = softmax over experts of r_i;   S_i = s where r_i > t mean(r_i)
    w_i = (S_i of magnitudes + S_i of directions) / 2;   W = W_0 + lambda sum_i w_i (W_i - W_0)

A column holds the weights of one input, of an embedding it is a token's (or position's) row. Tensors without columns
take r_i = |tau_i|.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ...families import Family, Place

VARIANTS: list[dict[str, Any]] = [
    {},
    {"above_average": 1.5, "calibration": 0.8, "lambda": 0.7},
    {"above_average": 0.0, "experts": 4},
    {"experts": 1},
    {"orientation": "input_first"},
]


def widen(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """Merge column by column."""
    given = {
        "above_average": 1.0,
        "calibration": 1.0,
        "lambda": 1.0,
        "orientation": "auto",
        **parameters,
    }
    merged = {}
    for name, place in family.places.items():
        base, deltas = family.base[name], family.deltas(name)
        if len(place.shape) < 2:
            weights = _significance([np.abs(d) for d in deltas], given)
        else:
            weights = _weights(base, [e[name] for e in family.experts], place, given)
        change = sum(w * d for w, d in zip(weights, deltas, strict=True))
        merged[name] = base + given["lambda"] * change
    return merged


def _weights(
    base: np.ndarray, experts: list[np.ndarray], place: Place, given: dict[str, Any]
) -> list[np.ndarray]:
    """One number per column, spread over the tensor."""
    if base.ndim == 3:
        flat = replace(place, shape=place.shape[1:])
        slices = [_weights(b, [e[k] for e in experts], flat, given) for k, b in enumerate(base)]
        return [np.stack(of_expert) for of_expert in zip(*slices, strict=True)]
    matrix = base.reshape(base.shape[0], -1)
    turned = {"input_first": True, "output_first": False}.get(
        given["orientation"], place.input_first
    )
    turned = turned and base.ndim == 2  # a kernel's outputs come first in every library
    along = 1 if place.role.endswith("embedding") or turned else 0
    sizes, angles = [], []
    for expert in experts:
        mine = expert.reshape(matrix.shape)
        lengths = [np.linalg.norm(x, axis=along) for x in (mine, matrix)]
        product = lengths[0] * lengths[1]
        dot = (mine * matrix).sum(axis=along)
        cosine = np.divide(dot, product, out=np.ones_like(dot), where=product > 0)
        sizes.append(_ranks(np.abs(lengths[0] - lengths[1])))
        # A column that an expert leaves alone has no angle, whatever rounding makes of its cosine.
        angles.append(_ranks(np.where((mine == matrix).all(axis=along), 0.0, 1 - cosine)))
    both = zip(_significance(sizes, given), _significance(angles, given), strict=True)
    return [
        np.broadcast_to(np.expand_dims((a + b) / 2, along), matrix.shape).reshape(base.shape)
        for a, b in both
    ]


def _ranks(x: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(x, kind="stable")) / x.size


def _significance(scores: list[np.ndarray], given: dict[str, Any]) -> list[np.ndarray]:
    powers = np.exp(np.stack(scores))
    shares = powers / powers.sum(axis=0)
    return [
        np.where(r > given["above_average"] * _mean(r), given["calibration"], share)
        for r, share in zip(scores, shares, strict=True)
    ]


def _mean(scores: np.ndarray) -> float:
    """The mean, rounded once: the middle one of an odd number of ranks is no larger than their mean."""
    return math.fsum(scores.ravel()) / scores.size
