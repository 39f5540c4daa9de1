"""What makes up for the elements that a task vector lost."""

from __future__ import annotations

from typing import Any

import numpy as np


def rescaled(
    before: np.ndarray, after: np.ndarray, probability: Any, given: dict[str, Any]
) -> np.ndarray:
    """Divided by the probability of being kept (rescale: probability), to the L1 norm before (l1), or as it is."""
    if given["rescale"] == "probability":
        return np.divide(after, probability, out=np.zeros_like(after), where=after != 0)
    if given["rescale"] == "l1":
        old, new = np.abs(before).sum(), np.abs(after).sum()
        return after * (old / new) if old > given["rescale_floor"] and new > 0 else after
    return after
