"""Metrics: how the scores of items become the score of a task.

    score = finish(sum of values / sum of weights)

Every metric is a ratio of two sums over items, so that resampling items gives the score of a resample exactly. For
accuracy a value is 0 or 1 and a weight 1; for bits per byte they are the bits and the bytes of a text.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weightsmith.errors import UsageError
from weightsmith.naming import nearest

Floats = NDArray[np.float64]


class Finish(enum.Enum):
    """What is done with the ratio of the sums."""

    RATIO = "ratio"
    EXPONENTIAL = "exponential"

    def apply(self, ratios: Floats) -> Floats:
        """The scores of ratios; an exponential that float64 cannot hold is the largest number that it can."""
        if self is Finish.RATIO:
            return ratios
        return np.exp(np.minimum(ratios, math.log(np.finfo(np.float64).max)))


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric: `binary` where an item is right or wrong, `cutoff` k of metrics at k."""

    name: str
    higher_is_better: bool
    binary: bool = False
    finish: Finish = Finish.RATIO
    cutoff: int | None = None


_METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", higher_is_better=True, binary=True),
        Metric("accuracy_normalized", higher_is_better=True, binary=True),
        Metric("bits_per_byte", higher_is_better=False),
        Metric("perplexity", higher_is_better=False, finish=Finish.EXPONENTIAL),
        Metric("exact_match", higher_is_better=True, binary=True),
        Metric("mrr", higher_is_better=True),
    )
}
# Metrics at k: recall of one right document is 0 or 1.
_AT_K: Mapping[str, bool] = {"ndcg": False, "recall": True}
# What each kind of task can be scored by, its default first.
METRICS_OF: Mapping[str, tuple[str, ...]] = {
    "classification": ("accuracy",),
    "language_modeling": ("bits_per_byte", "perplexity"),
    "choice": ("accuracy", "accuracy_normalized"),
    "generation": ("exact_match",),
    "retrieval": ("ndcg@10", "recall@5", "mrr"),
}


def find_metric(name: str, kind: str) -> Metric:
    """The metric of a kind of task by its name, such as `accuracy`, `ndcg@10` or `recall@5`.

    Raises UsageError for a name that the kind does not have.
    """
    at_k = re.fullmatch(r"([a-z]+)@([1-9][0-9]{0,5})", name)
    if kind == "retrieval" and at_k and at_k[1] in _AT_K:
        return Metric(name, True, _AT_K[at_k[1]], cutoff=int(at_k[2]))
    if name in METRICS_OF[kind] and name in _METRICS:
        return _METRICS[name]
    near = nearest(name, METRICS_OF[kind])
    hint = f"did you mean {near!r}?" if near else f"use {' or '.join(METRICS_OF[kind])}."
    raise UsageError(f"A {kind} task has no metric {name!r}; {hint}")
