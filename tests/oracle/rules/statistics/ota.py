"""OTA-Merging with Fast Fisher Grafting (2025, arXiv:2509.11167).

    s_i = v_i tau_i^2;   m_i = [s_i among the floor(density_i M) largest of the model or tensor]
    q_i = w_i (v_i^power + epsilon);   tau = sum_i q_i m_i tau_i / sum_i q_i m_i;   theta = theta_0 + lambda tau

v_i is Adam's second moment, divided by its norm or mean over the model where `normalize` says so. Elements that all
masks leave out are the base's, or the mean of the experts (masked: average); those that are kept without any weight q_i
are the plain mean over the experts that keep them. Elements of saliency 0 are kept by density 1 alone, which masks
nothing. `reduce: linear` is the mean over all experts of m_i tau_i with weights w_i, `reduce: ties` that of those which
agree with the sign of sum_i w_i m_i tau_i. `rescale: size` multiplies m_i tau_i by its size without the mask over that
with it: largest singular value of matrices and stacks, largest column norm of embeddings and heads, Euclidean norm of
everything else. Without a base, experts take the place of task vectors and masks go by v_i alone. Tensors without
moments: the mean of task vectors with weights w_i.

The defaults of the authors' code mask nothing, fall back to the mean and add 1e-8 (reference); its file hf_ota.yml has
power 1 and epsilon 1e-28. Its `normalise: global` is `tensor_mean`: v_i^power over epsilon plus its mean in the tensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.averages import average, model_norm, squares
from ..shared.matrices import LOOKED_UP
from ..shared.order import count as count_of
from ..shared.order import joined, largest, largest_by_share
from ..shared.values import each, shared, with_preset

if TYPE_CHECKING:
    from ...families import Family, Place

STATISTICS = "adam"
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "weight": 1.0,
        "density": 0.4,
        "power": 0.5,
        "epsilon": 0.0,
        "normalize": "none",
        "scope": "model",
        "reduce": "curvature",
        "masked": "base",
        "rescale": "none",
        "lambda": 1.0,
        "base": True,
    },
    "reference": {"density": 1.0, "masked": "average", "epsilon": 1e-8},
    "hf_ota": {"density": 1.0, "masked": "average", "power": 1.0, "epsilon": 1e-28},
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"statistics": "fisher", "scope": "tensor", "density": [0.2, 0.5, 0.9]},
    {"statistics": "gradients", "power": 1.0, "weight": [0.5, 2.0, 0.0]},
    {"power": 0.0, "density": 0.7, "masked": "average"},
    {"preset": "hf_ota"},
    {"preset": "reference"},
    {"normalize": "model", "power": 0.25, "epsilon": 1e-3},
    {"normalize": "mean", "power": 1.0, "density": 1.0, "lambda": 0.6},
    {"normalize": "tensor_mean", "power": 1.0, "epsilon": 1e-13},
    {"reduce": "linear", "weight": [0.5, 2.0, 1.0]},
    {"reduce": "ties", "weight": [0.5, 2.0, 1.0], "density": 0.6},
    {"rescale": "size", "reduce": "linear"},
    {"rescale": "size", "scope": "tensor", "masked": "average"},
    {"density": [1.0, 0.3, 0.3]},
    {"density": 0.0},
    {"base": False},
    {"base": False, "masked": "average", "power": 1.0, "density": 0.3},
]
# Elementwise, but for the largest singular values of rescale.
TOLERANCE = 1e-11
STRUCTURED = 3


def ota(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """Grafted task vectors, averaged by element."""
    how = with_preset(parameters, PRESETS)
    count = len(family.experts)
    densities = {n: each(how, "density", n, count) for n in family.base}
    start = {n: b if how["base"] else np.zeros_like(b) for n, b in family.base.items()}
    taus = [{n: expert[n] - start[n] for n in start} for expert in family.experts]
    moments = squares(family)
    masks = [
        _kept(
            _saliency(v, tau if how["base"] else None),
            {n: densities[n][i] for n in v},
            how["scope"],
        )
        for i, (v, tau) in enumerate(zip(moments, taus, strict=True))
    ]
    scaled = [_scaled(v, how["normalize"]) for v in moments]
    merged = {}
    for name in start:
        vectors = [tau[name] for tau in taus]
        weights, factor = each(how, "weight", name, count), shared(how, "lambda", name)
        if name not in moments[0]:
            merged[name] = start[name] + factor * average(vectors, weights)
            continue
        own = [mask[name] for mask in masks]
        if how["rescale"] == "size":
            vectors = [
                _resized(v, m, family.places[name]) for v, m in zip(vectors, own, strict=True)
            ]
        q = [
            w * (_power(v[name], how) + how["epsilon"])
            for w, v in zip(weights, scaled, strict=True)
        ]
        change = _reduced(vectors, own, q, weights, how["reduce"])
        nobody = ~np.any(own, axis=0)
        mean = np.mean([expert[name] for expert in family.experts], axis=0) - start[name]
        falls_back = how["masked"] == "average" or not how["base"]
        change = np.where(nobody, mean if falls_back else 0.0, change)
        merged[name] = start[name] + factor * change
    return merged


def _saliency(
    moments: Mapping[str, np.ndarray], taus: Mapping[str, np.ndarray] | None
) -> dict[str, np.ndarray]:
    """s_i."""
    if taus is None:
        return dict(moments)
    return {name: v * taus[name] ** 2 for name, v in moments.items()}


def _kept(
    saliency: Mapping[str, np.ndarray], densities: Mapping[str, float], scope: str
) -> dict[str, np.ndarray]:
    """m_i, tensors that are given another density having a threshold of their own."""
    sizes = {n: s.size for n, s in saliency.items()}
    if scope == "model":
        return largest_by_share(saliency, densities, sizes)
    return {
        n: largest(s, count_of(densities[n], s.size)) & (s > 0) | (densities[n] >= 1.0)
        for n, s in saliency.items()
    }


def _scaled(moments: Mapping[str, np.ndarray], rule: str) -> dict[str, np.ndarray]:
    size = 1.0
    if rule == "model":
        size = model_norm(moments)
    if rule == "mean":
        size = joined(list(moments.values())).mean()
    return {name: v / size for name, v in moments.items()}


def _power(moments: np.ndarray, how: Mapping[str, Any]) -> np.ndarray:
    """v_i^power, over its mean where that is asked for."""
    raised = moments ** how["power"]
    if how["normalize"] == "tensor_mean":
        raised = raised / (raised.mean() + how["epsilon"])
    return np.asarray(raised)


def _reduced(
    vectors: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    q: Sequence[np.ndarray],
    weights: Sequence[float],
    rule: str,
) -> np.ndarray:
    kept = [m * v for m, v in zip(masks, vectors, strict=True)]
    if rule == "linear":
        return average(kept, weights)
    if rule == "ties":
        weighted = [w / sum(weights) * v for w, v in zip(weights, kept, strict=True)]
        agree = [np.sign(v) == np.sign(sum(weighted)) for v in weighted]
        shares = [a * w / sum(weights) for a, w in zip(agree, weights, strict=True)]
        total = sum(a * v for a, v in zip(agree, weighted, strict=True))
        return np.asarray(total / np.where(sum(shares) == 0.0, 1.0, sum(shares)))
    found = average(vectors, [m * x for m, x in zip(masks, q, strict=True)])
    return np.where(np.isnan(found), average(vectors, [m * 1.0 for m in masks]), found)


def _resized(vector: np.ndarray, mask: np.ndarray, place: Place) -> np.ndarray:
    """m_i tau_i at the size of tau_i; a mask that leaves nothing out is left alone."""
    kept = mask * vector
    now = _size(kept, place)
    return kept * (_size(vector, place) / now) if now else kept


def _size(array: np.ndarray, place: Place) -> float:
    if array.ndim < 2:
        return float(np.linalg.norm(array))
    if place.role in LOOKED_UP and array.ndim == 2:
        return float(np.linalg.norm(array, axis=0).max())
    stack = array if array.ndim == 3 else array.reshape(1, array.shape[0], -1)
    return float(max(np.linalg.norm(matrix, 2) for matrix in stack))
