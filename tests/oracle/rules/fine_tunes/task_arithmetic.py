"""Task arithmetic (Ilharco et al., ICLR 2023, arXiv:2212.04089).

theta = theta_0 + lambda sum_i w_i (theta_i - theta_0)

MetaGPT (EMNLP 2024, arXiv:2406.11385) multiplies the task vectors by their shares of the squared lengths of all models.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.consensus import summed
from ..shared.values import with_preset

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"weight": 1.0, "normalize": "none", "lambda": 1.0, "coefficients": "given"},
    "mergekit": {},
    "metagpt": {"coefficients": "energy"},
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"weight": [0.5, -1.0, 0.25], "lambda": 0.3},
    {"normalize": "absolute", "weight": [0.5, -1.0, 0.25]},
    {"normalize": "signed", "weight": [0.5, 1.0, 0.25]},
    {"preset": "mergekit", "weight": [1.0, 0.5, 0.7], "normalize": "signed"},
    {"experts": 1, "weight": [-0.5]},
    {"preset": "metagpt"},
    {"preset": "metagpt", "weight": [2.0, 1.0, -1.0], "normalize": "absolute", "lambda": 1.5},
]
EQUAL = VARIANTS


def task_arithmetic(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The sum of the task vectors."""
    given = with_preset(parameters, PRESETS)
    sparse = {n: family.deltas(n) for n in family.places}
    if given["coefficients"] == "energy":
        squares = sum(np.array([(d**2).sum() for d in deltas]) for deltas in sparse.values())
        shares = squares / squares.sum()
        sparse = {n: [c * d for c, d in zip(shares, ds, strict=True)] for n, ds in sparse.items()}
    return summed(family, sparse, given)
