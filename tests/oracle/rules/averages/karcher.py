"""Karcher mean (Karcher, 1977; for models arXiv:2603.04972) of whole tensors as directions, times the mean length.

n_i = |theta_i|;   u_i = theta_i / n_i;   m = normalise(sum_i w_i u_i)
repeat:  phi_i = arccos <m, u_i>;   T = sum_i w_i (phi_i / sin phi_i) (u_i - cos(phi_i) m)
         m = cos|T| m + sin|T| T / |T|                until |T| < tol
theta = (sum_i w_i n_i) m
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..shared.arcs import mean_direction
from ..shared.values import each, with_preset

if TYPE_CHECKING:
    import numpy as np

    from ...families import Family

# The iteration stops at an angle of 1e-10, with mergekit's numbers at 1e-5 after ten steps.
TOLERANCE = 1e-9
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"weight": 1.0, "max_iter": 50, "tol": 1e-10, "zero_norm": 0.0},
    "mergekit": {"max_iter": 10, "tol": 1e-5, "zero_norm": None},
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"weight": [0.5, 1.5, 0.25]},
    {"preset": "mergekit"},
    {"max_iter": 2, "weight": [1.0, 0.5, 0.25]},
    {"experts": 1},
]


def karcher(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The mean, tensor by tensor."""
    given = with_preset(parameters, PRESETS)
    return {
        name: averaged([e[name] for e in family.experts], name, given) for name in family.places
    }


def averaged(vectors: list[np.ndarray], name: str, given: dict[str, Any]) -> np.ndarray:
    """The Karcher mean of some vectors; a single one is its own."""
    if len(vectors) == 1:
        return vectors[0]
    zero = given["tol"] if given["zero_norm"] is None else given["zero_norm"]
    return mean_direction(
        vectors,
        each(given, "weight", name, len(vectors)),
        steps=given["max_iter"],
        tolerance=given["tol"],
        zero=zero,
    )
