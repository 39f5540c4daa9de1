"""RCP-Merging (AAAI 2026, github.com/ZeroNLP/RCP-Merging). The first expert R reasons, the others D know domains.

    F = E (g_R theta_R)^2, or E g_R^2 (prior fisher);   S_s = g_s theta_D for every sample s of a domain
    votes = sum_s (+1 if S_s + penalty F (theta_R - theta_D)^2 <= 0, else -1)
    theta = theta_R + sum_D [votes_D > 0] (theta_D - theta_0)

Tensors without statistics: theta_R, or with every task vector added (without_statistics: add).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.averages import squares
from ..shared.values import with_preset

if TYPE_CHECKING:
    from ...families import Family

STATISTICS = "gradients"
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"penalty": 1000.0, "prior": "weighted", "without_statistics": "reasoning"},
    "fisher": {"prior": "fisher"},
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"preset": "fisher"},
    {"penalty": 0.0, "without_statistics": "add"},
    {"penalty": 30.0},
]
# Sums of a few float64 numbers.
TOLERANCE = 1e-12


def rcp(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The reasoning model with what the domains' samples vote for."""
    how = with_preset(parameters, PRESETS)
    fisher = squares(family)[0]
    reasoning, *domains = family.experts
    merged = {}
    for name, base in family.base.items():
        own, taken = reasoning[name], [domain[name] - base for domain in domains]
        if name not in fisher:
            add = how["without_statistics"] == "add"
            merged[name] = own + sum(taken) if add else own
            continue
        prior = fisher[name] * (own**2 if how["prior"] == "weighted" else 1.0)
        result = own
        for domain, tau, samples in zip(domains, taken, family.statistics[1:], strict=True):
            gap = how["penalty"] * prior * (own - domain[name]) ** 2
            votes = np.where(np.array(samples[name]) * domain[name] + gap <= 0.0, 1, -1).sum(0)
            result = result + np.where(votes > 0, tau, 0.0)
        merged[name] = result
    return merged
