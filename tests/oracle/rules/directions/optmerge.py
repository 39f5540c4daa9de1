"""OptMerge, or WUDI v2 (Wei et al., ICLR 2026, arXiv:2505.19892).

    tau_i ~ U_i S_i V_i^T of the k = floor(min(m, n) / N) strongest triplets, at least 1
    L(T) = sum_i ||(T - t_i) V_i S_i||^2 / ||tau_i||^2;   theta = theta_0 + lambda T
    full   t_i = top_k(tau_i - mean tau) + mean tau;  Adam from sum_i tau_i, 300 steps of 1e-5
    lora   t_i = top_k(tau_i);  gradient descent with momentum .9 from mean tau, 300 steps of 1e-4

or the minimiser that is nearest to the start (solver closed). Embeddings, heads and tensors that are no matrix stay at
the base.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.interference import Interference, adam, started, with_momentum
from ..shared.matrices import EXACT_RANKS, PATHS, RULE_VARIANTS, RULES, merged_by_matrix
from ..shared.order import count
from ..shared.spectra import directions
from ..shared.values import with_preset

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        **RULES,
        "others": "base",
        "embeddings": "base",
        "weight": 1.0,
        "flavour": "full",
        "rank_share": None,
        "solver": "descent",
        "start": None,
        "steps": 300,
        "learning_rate": None,
        "lambda": 1.0,
    },
    "lora": {"flavour": "lora"},
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"preset": "lora"},
    {"steps": 40, "learning_rate": 1e-3, "weight": [1.0, 0.5, 2.0], "lambda": 0.7},
    {"preset": "lora", "start": "sum", "steps": 40, "learning_rate": 0.05},
    {"solver": "closed", "rank_share": 0.2},
    {"solver": "closed", "preset": "lora", "rank_share": 0.2, "start": "zero"},
    *({"solver": "closed", "rank_share": 0.2, **rules} for rules in RULE_VARIANTS),
    *({"steps": 20, **path} for path in PATHS),
]
# The minimiser divides by eigenvalues of C; a descent of 300 steps adds up their rounding.
TOLERANCE = 1e-8
STRUCTURED = 3
EXACT = EXACT_RANKS


def optmerge(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """Least interference among leading directions."""
    how = with_preset(parameters, PRESETS)
    tolerance = how["rank_tolerance"]
    is_full = how["flavour"] == "full"
    start = how["start"] or ("sum" if is_full else "mean")

    def merged(matrices: list[np.ndarray], weights: list[float]) -> np.ndarray:
        tasks = [w * m for w, m in zip(weights, matrices, strict=True)]
        share, smaller = how["rank_share"], min(tasks[0].shape)
        k = max(1, smaller // len(tasks) if share is None else count(share, smaller))
        mean = started(tasks, "mean") if is_full else np.zeros_like(tasks[0])
        alive = [t for t in tasks if t.any()]
        targets = [directions(t - mean, k, tolerance).matrix() + mean for t in alive]
        leading = [directions(t, k, tolerance) for t in alive]
        factors = [
            d.values[:, None] * d.right / np.linalg.norm(t)
            for d, t in zip(leading, alive, strict=True)
        ]
        problem = Interference(started(tasks, start), targets, factors)
        if how["solver"] == "closed":
            return problem.minimum(tolerance)
        rate = how["learning_rate"] or (1e-5 if is_full else 1e-4)
        return (adam if is_full else with_momentum)(problem, how["steps"], rate)

    return merged_by_matrix(family, how, merged)
