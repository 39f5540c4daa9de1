"""DC-Merge (CVPR 2026, arXiv:2603.06242).

    tau_i ~ U_i S_i V_i^T of rank r = max(1, floor(min(m, n) / N));  C_U = polar([U_1 .. U_N]), C_V likewise
    M_i = w_i C_U^T U_i smooth(S_i) V_i^T C_V, its floor(density R^2) largest numbers, at least 1
    M = mean of the M_i of the sign of their sum (or the sum), 0 between tasks;  theta = theta_0 + lambda C_U M C_V^T

Whatever is no matrix: the rule of TSV-Merge.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.matrices import EXACT_RANKS, PATHS, RULE_VARIANTS, RULES, merged_by_matrix
from ..shared.order import count
from ..shared.spectra import directions, polar
from ..shared.values import with_preset

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        **RULES,
        "weight": 1.0,
        "rank": None,
        "smoothing": "average",
        "rho": 5.0,
        "density": 0.001,
        "consensus": "ties",
        "lambda": 1.0,
    },
    "full": {"smoothing": "none", "exempt": "linear.text_projection"},
    "lora": {"rank": 16},
}
VARIANTS: list[dict[str, Any]] = [
    {"density": 0.3},
    {},
    {"density": 0.4, "smoothing": "linear", "weight": [1.0, 0.5, -2.0], "lambda": 0.7},
    {"preset": "full", "density": 0.5},
    {"preset": "lora", "density": 0.5},
    {"rank": 2, "density": 1.0, "consensus": "sum", "weight": [1.0, 0.0, 2.0]},
    {"smoothing": "linear", "rho": 1.5, "density": 0.2, "rank": 1},
    {"density": 0.0},
    *({"density": 0.3, **variant} for variant in RULE_VARIANTS),
    {"density": 0.3, "rank_tolerance": 0.3},
    *({"density": 0.3, **path} for path in PATHS),
]
# Directions, over the gaps between singular values, and the polar factors of all of them.
TOLERANCE = 1e-10
STRUCTURED = 3
EXACT = EXACT_RANKS


def dc_merge(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The merge in the cover."""
    how = with_preset(parameters, PRESETS)

    def merged(matrices: list[np.ndarray], weights: list[float]) -> np.ndarray:
        rank = how["rank"] or max(1, min(matrices[0].shape) // len(matrices))
        found = [
            (directions(m, rank, how["rank_tolerance"]), w)
            for m, w in zip(matrices, weights, strict=True)
            if w and m.any()
        ]
        if not found:
            return np.zeros_like(matrices[0])
        tolerance = how["rank_tolerance"]
        left = polar(np.hstack([d.left for d, _ in found]), tolerance)
        right = polar(np.vstack([d.right for d, _ in found]).T, tolerance)
        cores = []
        for one, weight in found:
            task = (one.left * _smooth(one.values, how)) @ one.right
            cores.append(_kept(weight * left.T @ task @ right, how["density"]))
        core = sum(cores) if how["consensus"] == "sum" else _elected(cores)
        owner = np.repeat(np.arange(len(found)), [d.values.size for d, _ in found])
        return np.asarray(left @ (core * (owner[:, None] == owner)) @ right.T)

    return merged_by_matrix(family, how, merged)


def _smooth(values: np.ndarray, how: dict[str, Any]) -> np.ndarray:
    if how["smoothing"] == "none":
        return values
    if how["smoothing"] == "average":
        return np.full_like(values, values.mean())
    shares = np.linspace(min(how["rho"], values[0] / values[-1]), 1.0, values.size)
    return np.asarray(values.sum() * shares / shares.sum())


def _kept(core: np.ndarray, density: float) -> np.ndarray:
    least = np.sort(np.abs(core), axis=None)[-max(1, count(density, core.size))]
    # Of equal numbers all are kept, in whatever order rounding puts them.
    return np.where(np.abs(core) >= least * (1.0 - 1e-12), core, 0.0)


def _elected(cores: list[np.ndarray]) -> np.ndarray:
    stack = np.array(cores)
    sums = np.where(np.abs(stack.sum(0)) > 1e-12 * np.abs(stack).max(), stack.sum(0), 0.0)
    agrees = (np.sign(stack) == np.sign(sums)) & (sums != 0)
    return np.asarray((stack * agrees).sum(0) / np.maximum(agrees.sum(0), 1))
