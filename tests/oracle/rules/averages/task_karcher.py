"""The Karcher mean of task vectors: theta = theta_0 + lambda mean(tau_1, ..., tau_N)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..shared.values import with_preset
from .karcher import averaged

if TYPE_CHECKING:
    import numpy as np

    from ...families import Family

TOLERANCE = 1e-9  # as in karcher
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"weight": 1.0, "max_iter": 50, "tol": 1e-10, "zero_norm": 0.0, "lambda": 1.0}
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"weight": [0.5, 1.5, 0.25], "lambda": 0.6},
    {"max_iter": 3},
    {"experts": 1, "lambda": 0.5},
]


def task_karcher(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The mean of what fine-tuning changed."""
    given = with_preset(parameters, PRESETS)
    return {
        n: family.base[n] + given["lambda"] * averaged(family.deltas(n), n, given)
        for n in family.places
    }
