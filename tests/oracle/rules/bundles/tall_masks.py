"""TALL masks (Wang et al., ICML 2024, arXiv:2405.07813): one task, rebuilt from the multi-task vector.

tau = sum_i tau_i;   m_t = [ |tau_t| > lambda_t |tau - tau_t| ];   theta_t = theta_0 + m_t tau
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..shared.tasks import DEFAULTS, multi_task, task_masks
from ..shared.values import with_preset

if TYPE_CHECKING:
    import numpy as np

    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {**DEFAULTS, "task": "1"},
    "magnitude": {"masks": "magnitude"},
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"task": "2", "mask_lambda": [0.2, 0.6, 1.0]},
    {"preset": "magnitude"},
    {"preset": "magnitude", "task": "3", "mask_density": 0.3},
    {"vector": "ties", "density": 0.3},
    {"vector": "ties", "masks": "magnitude"},
    {"mask_lambda": 0.0},
    {"experts": 1},
]
EQUAL = VARIANTS


def tall_masks(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """What a task uses of the multi-task vector."""
    given = with_preset(parameters, PRESETS)
    vector = multi_task(family, given)
    masks = task_masks(family, vector, given)
    task = int(given["task"]) - 1
    return {n: family.base[n] + masks[n][task] * vector[n] for n in family.places}
