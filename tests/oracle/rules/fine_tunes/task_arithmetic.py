"""Task arithmetic (Ilharco et al., ICLR 2023, arXiv:2212.04089).

theta = theta_0 + lambda sum_i w_i (theta_i - theta_0)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..shared.consensus import summed
from ..shared.values import with_preset

if TYPE_CHECKING:
    import numpy as np

    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"weight": 1.0, "normalize": "none", "lambda": 1.0},
    "mergekit": {},
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"weight": [0.5, -1.0, 0.25], "lambda": 0.3},
    {"normalize": "absolute", "weight": [0.5, -1.0, 0.25]},
    {"normalize": "signed", "weight": [0.5, 1.0, 0.25]},
    {"preset": "mergekit", "weight": [1.0, 0.5, 0.7], "normalize": "signed"},
    {"experts": 1, "weight": [-0.5]},
]
EQUAL = VARIANTS


def task_arithmetic(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The sum of the task vectors."""
    sparse = {n: family.deltas(n) for n in family.places}
    return summed(family, sparse, with_preset(parameters, PRESETS))
