"""Bootstrap percentile intervals of ratios of sums over items."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weightsmith.errors import UsageError
from weightsmith.evaluation.metrics import Finish, Floats

RESAMPLES = 2000
COVERAGE = 0.95
_DRAWS_AT_A_TIME = 1 << 21


@dataclass(frozen=True, slots=True)
class Interval:
    """From `low` to `high`, both included."""

    low: float
    high: float


def bootstrap_interval(
    values: Floats,
    weights: Floats,
    *,
    finish: Finish = Finish.RATIO,
    binary: bool = False,
    coverage: float = COVERAGE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The percentile interval of finish(sum of values / sum of weights) when items are drawn anew with replacement.

    Items that are all right, or all wrong, give every resample the same score, which says nothing of how sure it is;
    for them the interval is the exact binomial one (Clopper and Pearson 1934): from (alpha / 2)^(1 / n) to 1, and the
    like for 0. Raises UsageError for a coverage outside (0, 1) or no resamples.
    """
    if not 0 < coverage < 1 or resamples < 1:
        raise UsageError(
            f"An interval needs a coverage in (0, 1) and at least one resample, not {coverage} and {resamples}."
        )
    tail = (1 - coverage) / 2
    if binary and values.min() == values.max():
        bound = float(tail ** (1 / len(values)))
        return Interval(bound, 1.0) if values[0] > 0.5 else Interval(0.0, 1 - bound)
    ratios = np.concatenate(
        [
            values[drawn].sum(1) / weights[drawn].sum(1)
            for drawn in resampled(len(values), resamples, seed)
        ]
    )
    low, high = np.quantile(finish.apply(ratios), (tail, 1 - tail))
    return Interval(float(low), float(high))


def resampled(items: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Positions of the items of every resample, [R, items], in blocks of bounded size.

    They depend on the seed and the number of items alone, so that two models are resampled alike.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    block = max(1, _DRAWS_AT_A_TIME // items)
    for start in range(0, resamples, block):
        yield generator.integers(items, size=(min(block, resamples - start), items))
