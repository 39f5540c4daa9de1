"""The trust region of TATR (ICLR 2025, arXiv:2501.15065) for every method: tau'_i = 0 outside of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.trust import outside

if TYPE_CHECKING:
    from ...families import Family

STATISTICS = "gradients:absolute"
VARIANTS: list[dict[str, Any]] = [
    {"drop": 0.3},
    {},
    {"drop": 0.3, "scope": "tensor"},
    {"drop": 0.0},
]


def trust_region(family: Family, parameters: dict) -> Family:
    """The family with task vectors inside the region."""
    how = {"drop": 0.01, "scope": "model", **parameters}
    names = list(family.statistics[0])
    deltas = [{n: expert[n] - family.base[n] for n in names} for expert in family.experts]
    masks = outside(family.statistics, deltas, how["drop"], how["scope"])
    experts = [
        {n: np.where(masks.get(n, False), family.base[n], x) for n, x in expert.items()}
        for expert in family.experts
    ]
    return replace(family, experts=experts)
