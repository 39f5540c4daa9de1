"""TATR without data (ICLR 2025, arXiv:2501.15065): |tau_i| in the place of the gradients of task i."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .tatr import tatr

if TYPE_CHECKING:
    from ...families import Family

VARIANTS: list[dict[str, Any]] = [
    {"drop": 0.2},
    {},
    {"drop": 0.15, "scope": "tensor", "weight": [0.5, 2.0, -1.0], "lambda": 1.0},
    {"drop": 1.0},
    {"experts": 1},
]


def tatr_zero_shot(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The other method with these gradients."""
    sizes = [
        {name: np.abs(expert[name] - base) for name, base in family.base.items()}
        for expert in family.experts
    ]
    return tatr(replace(family, statistics=sizes), parameters)
