"""Exponential moving average of checkpoints (Kaddour, 2022, arXiv:2209.14981).

a_1 = theta_1;   a_j = d a_{j-1} + (1 - d) theta_j
bias_correction: a_0 = 0 and the average is a_n / (1 - d^n), for d = 1 its limit, the mean
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from ...families import Family

VARIANTS: list[dict[str, Any]] = [
    {},
    {"decay": 0.3},
    {"decay": 0.6, "bias_correction": True, "experts": 4},
    {"decay": 1.0, "bias_correction": True},
    {"decay": 1.0},
    {"decay": 0.0},
]


def ema(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The average, checkpoint after checkpoint."""
    given = {"decay": 0.9, "bias_correction": False, **parameters}
    decay, count = given["decay"], len(family.experts)
    merged = {}
    for name in family.places:
        states = [e[name] for e in family.experts]
        if not given["bias_correction"]:
            average = states[0]
            for state in states[1:]:
                average = decay * average + (1 - decay) * state
        elif decay == 1:
            average = sum(states) / count
        else:
            average = 0.0 * states[0]
            for state in states:
                average = decay * average + (1 - decay) * state
            average = average / (1 - decay**count)
        merged[name] = average
    return merged
