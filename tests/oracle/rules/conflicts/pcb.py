"""PCB-Merging (Du et al., NeurIPS 2024, arXiv:2410.02396). All vectors are whole models of P elements.

    Norm(x) = (x - min x) / (max x - min x)
    alpha_i = Softmax(N Norm(tau_i tau_i));   beta_i = sum_j Softmax(Norm(tau_i tau_j))
    s_i = Norm(alpha_i beta_i, all but its floor(density P) largest elements set to 0)
    theta = theta_0 + lambda sum_i s_i w_i tau_i / sum_i s_i

The authors' files, with c_i = sign(tau_i) clip(|tau_i|, two quantiles) and n_i = sign(c_i) Norm|c_i|:

    alpha_i = exp(N Norm(|c_i|)^2)
    beta_i = tanh(tau_i sum_j tau_j) (raw), tanh(tau_i sum_j n_j) (normalised), sum_j tanh(n_i n_j) (pairs)
    s_i = Norm(max(alpha_i beta_i, its 1 - density quantile)), and c_i takes the place of tau_i

Of the quantiles that clip, q and 1 - q, the lower is the element floor(P q) and the upper floor(P (1 - q) - 1) in
ascending order, counted from 0; that of the scores, 1 - density, is a lower one.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.order import count, joined, largest_of_model, parted
from ..shared.values import each, with_preset

if TYPE_CHECKING:
    from ...families import Family

# Scores near a cut differ in their last digits by the order of sums; products of three exponentials amplify them.
TOLERANCE = 1e-11
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"weight": 1.0, "density": 0.2, "between": "softmax", "clamp": 0.0, "lambda": 1.0},
    "pcb-merging": {"density": 0.2, "between": "raw", "clamp": 1e-4},
    "pcb": {"density": 0.05, "between": "normalised", "clamp": 0.01},
    "pcb_es": {"density": 0.05, "between": "pairs", "clamp": 0.01},
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"density": 0.5, "weight": [0.5, 1.0, 2.0], "lambda": 0.7},
    {"density": 0.05, "experts": 4},
    {"preset": "pcb-merging"},
    {"preset": "pcb"},
    {"preset": "pcb_es"},
    {"preset": "pcb", "density": 0.3, "weight": [0.5, 1.0, 2.0]},
    {"experts": 1},
]


def pcb(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """Score every element of every task over the whole model."""
    given = with_preset(parameters, PRESETS)
    names, count_of = list(family.places), len(family.experts)
    shapes = [family.base[n] for n in names]
    tasks = [joined([family.deltas(n)[i] for n in names]) for i in range(count_of)]
    weights = [
        joined(
            [
                np.full(x.shape, each(given, "weight", n, count_of)[i])
                for n, x in zip(names, shapes, strict=True)
            ]
        )
        for i in range(count_of)
    ]
    if given["between"] == "softmax":
        like = dict(zip(names, shapes, strict=True))
        parts, scores = tasks, _scores(tasks, like, given["density"])
    else:
        parts, scores = _scores_of_code(tasks, given)
    total = sum(s * w * p for s, w, p in zip(scores, weights, parts, strict=True))
    divisor = sum(scores)
    change = np.divide(total, divisor, out=np.zeros_like(total), where=divisor != 0)
    changes = zip(names, parted(change, shapes), strict=True)
    return {n: family.base[n] + given["lambda"] * x for n, x in changes}


def _norm(x: np.ndarray) -> np.ndarray:
    spread = x.max() - x.min()
    return (x - x.min()) / spread if spread > 0 else np.zeros_like(x)


def _softmax(x: np.ndarray) -> np.ndarray:
    powers = np.exp(x - x.max())
    return powers / powers.sum()


def _scores(
    tasks: list[np.ndarray], like: dict[str, np.ndarray], density: float
) -> list[np.ndarray]:
    """The paper's s_i."""
    scores = []
    for mine in tasks:
        within = _softmax(len(tasks) * _norm(mine * mine))
        between = sum(_softmax(_norm(mine * other)) for other in tasks)
        score = within * between
        tensors = dict(zip(like, parted(score, list(like.values())), strict=True))
        kept = largest_of_model(tensors, count(density, score.size))
        scores.append(_norm(np.where(joined(list(kept.values())), score, 0.0)))
    return scores


def _scores_of_code(
    tasks: list[np.ndarray], given: dict[str, Any]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """c_i and s_i of the authors' files."""
    magnitudes = [_clipped(np.abs(x), given["clamp"]) for x in tasks]
    clipped = [np.sign(x) * m for x, m in zip(tasks, magnitudes, strict=True)]
    normed = [np.sign(x) * _norm(m) for x, m in zip(tasks, magnitudes, strict=True)]
    scores = []
    for i, mine in enumerate(tasks):
        within = np.exp(len(tasks) * _norm(magnitudes[i]) ** 2)
        if given["between"] == "raw":
            between = np.tanh(mine * sum(tasks))
        elif given["between"] == "normalised":
            between = np.tanh(mine * sum(normed))
        else:
            between = sum(np.tanh(normed[i] * other) for other in normed)
        score = within * between
        lowest = math.floor(score.size * (1 - Fraction(repr(given["density"]))))
        scores.append(_norm(np.maximum(score, np.sort(score)[lowest])))
    return clipped, scores


def _clipped(magnitudes: np.ndarray, share: float) -> np.ndarray:
    """Between their quantiles `share` and 1 - `share`; the code clips and compares them before the sign comes back."""
    ordered = np.sort(magnitudes)
    highest = math.floor(ordered.size * (1 - Fraction(repr(share))) - 1)
    return np.clip(magnitudes, ordered[count(share, ordered.size)], ordered[highest])
