"""EMR-Merging (Huang et al., NeurIPS 2024, arXiv:2405.17461): one task, rebuilt.

    gamma = sign(sum_i tau_i);   tau_uni = gamma max_{i: sign tau_i = gamma} |tau_i|
    M_t = [ tau_t tau_uni > 0 ];   lambda_t = sum |tau_t| / sum |M_t tau_uni|        both over the whole model
    theta_t = theta_0 + lambda_t M_t tau_uni

The authors' code (`emr_merge`) elects minus where the sum is zero and sums every tensor's mean magnitude.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.values import with_preset

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"task": "1", "rescale": "norm", "zero_sum": "zero"},
    "reference": {"rescale": "mean", "zero_sum": "negative"},
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"preset": "reference"},
    {"rescale": "none", "task": "2"},
    {"task": "3"},
    {"experts": 1},
]
EQUAL = VARIANTS


def emr(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """Elect, mask and rescale."""
    given = with_preset(parameters, PRESETS)
    task = int(given["task"]) - 1
    rebuilt = {}
    for name in family.places:
        deltas = np.stack(family.deltas(name))
        sign = np.sign(deltas.sum(axis=0))
        if given["zero_sum"] == "negative":
            sign = np.where(sign == 0, -1.0, sign)
        agreeing = np.where(np.sign(deltas) == sign, np.abs(deltas), 0.0)
        unified = sign * agreeing.max(axis=0)
        rebuilt[name] = np.where(deltas[task] * unified > 0, unified, 0.0)
    size = {"norm": np.sum, "mean": np.mean}.get(given["rescale"])
    scale = 1.0
    if size is not None:
        before = sum(size(np.abs(family.deltas(n)[task])) for n in rebuilt)
        after = sum(size(np.abs(x)) for x in rebuilt.values())
        scale = before / after if after > 0 else 0.0
    return {n: family.base[n] + scale * x for n, x in rebuilt.items()}
