"""SCE (Wan et al., 2024, arXiv:2408.07990), per tensor.

select     the floor(select_topk K) elements of largest variance over the experts, K of them not zero
calculate  w_i = sum tau^_i^2 / sum_j sum tau^_j^2
erase      elements whose sign is not that of sum_i tau^_i
theta = theta_0 + sum_i w_i tau^_i / sum_i w_i              over the experts left at each element
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.order import count, largest
from ..shared.values import with_preset

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "select_topk": 0.1,
        "selection": "all",
        "uniform_below": 0.0,
        "smallest_divisor": 0.0,
        "zero_sum": "positive",
    },
    "mergekit": {"select_topk": 1.0, "uniform_below": 1e-6, "smallest_divisor": 1e-6},
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"select_topk": 1.0},
    {"select_topk": 0.5, "selection": "weights", "zero_sum": "zero"},
    {"preset": "mergekit", "select_topk": 0.4},
    {"select_topk": 0.5, "experts": 4, "uniform_below": 1.0},
    {"select_topk": 1.0, "experts": 1},
]


def sce(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """Select, calculate, erase."""
    given = with_preset(parameters, PRESETS)
    merged = {}
    for name in family.places:
        deltas = np.stack(family.deltas(name))
        selected = np.where(_varying(deltas, given["select_topk"]), deltas, 0.0)
        rest = tuple(range(1, deltas.ndim))
        energy = np.square(selected).mean(axis=rest)
        if energy.sum() < given["uniform_below"] or energy.sum() == 0:
            energy = np.ones_like(energy)
        weights = (energy / energy.sum()).reshape(-1, *[1] * (deltas.ndim - 1))
        taken = deltas if given["selection"] == "weights" else selected
        sign = np.sign(taken.sum(axis=0))
        if given["zero_sum"] == "positive":
            sign = np.where(sign == 0, 1.0, sign)
        left = (np.sign(taken) == sign) & (taken != 0)
        total = np.where(left, weights * taken, 0.0).sum(axis=0)
        divisor = np.maximum((left * weights).sum(axis=0), given["smallest_divisor"])
        merged[name] = family.base[name] + total / np.where(divisor == 0, 1.0, divisor)
    return merged


def _varying(deltas: np.ndarray, share: float) -> np.ndarray:
    if share == 1:
        return np.ones(deltas.shape[1:], bool)
    variance = deltas.var(axis=0)
    # Task vectors that are all alike have no variance, whatever rounding makes of their mean.
    variance = np.where((deltas == deltas[0]).all(axis=0), 0.0, variance)
    return largest(variance, count(share, int((variance > 0).sum())))
