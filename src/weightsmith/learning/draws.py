"""Which items a step sees: every epoch all items once, in an order that follows from the seed, the task and the epoch.

A step's items depend on nothing that happened before it, so a run that goes on draws what it would have drawn.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np


def drawn(seed: int, task: int, count: int, step: int, size: int) -> list[int]:
    """The numbers of `size` of `count` items, for a step counted from 0."""
    first = step * size
    return [_order(seed, task, count, at // count)[at % count] for at in range(first, first + size)]


@lru_cache(maxsize=256)
def _order(seed: int, task: int, count: int, epoch: int) -> tuple[int, ...]:
    generator = np.random.Generator(np.random.PCG64([seed, task, epoch]))
    return tuple(int(number) for number in generator.permutation(count))
