"""The trust region of task arithmetic (ICLR 2025, arXiv:2501.15065)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from .order import count, largest, largest_of_model

Tensors = Mapping[str, np.ndarray]


def outside(
    gradients: Sequence[Tensors], deltas: Sequence[Tensors], drop: float, scope: str
) -> dict[str, np.ndarray]:
    """Masks of the floor(drop N) elements of largest Omega = sum over pairs i != j of g_i |tau_j|, none of them 0."""
    names = list(gradients[0])
    omega = {n: np.zeros_like(gradients[0][n]) for n in names}
    for i, gradient in enumerate(gradients):
        for j, delta in enumerate(deltas):
            if i != j:
                omega = {n: omega[n] + gradient[n] * np.abs(delta[n]) for n in names}
    if scope == "model":
        masks = largest_of_model(omega, count(drop, sum(x.size for x in omega.values())))
    else:
        masks = {n: largest(x, count(drop, x.size)) for n, x in omega.items()}
    return {n: mask & (omega[n] > 0) for n, mask in masks.items()}
