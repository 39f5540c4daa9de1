"""Scores under resampled items, and the estimates that are made of them.

A *draw* is an array of length 1 + R: the score of all items, then that of each of R resamples. Every formula over
scores is applied to draws as it stands, and `Estimate.of` reads value and interval off the result. Draws of one task
come from the same resamples whatever model was evaluated, so differences and ratios between models are paired; draws of
two tasks are independent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from weightsmith.errors import UsageError
from weightsmith.evaluation import COVERAGE, RESAMPLES, Evaluation, Floats, ItemScores, resampled


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number with its 95 % interval [low, high]."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, draws: Floats) -> Estimate:
        """Value and percentile interval of draws of shape [1 + R]."""
        tail = (1 - COVERAGE) / 2
        low, high = np.quantile(draws[1:], (tail, 1 - tail))
        return cls(float(draws[0]), float(low), float(high))

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval is on one side of 0."""
        return self.low > 0 or self.high < 0

    def to_mapping(self) -> dict[str, float]:
        """As JSON has it."""
        return {"value": self.value, "low": self.low, "high": self.high}


def draws_of(items: ItemScores, resamples: int = RESAMPLES) -> Floats:
    """The score of the items and of `resamples` resamples of them, [1 + R]."""
    ratios = [
        items.values[drawn].sum(1) / items.weights[drawn].sum(1)
        for drawn in resampled(len(items), resamples, seed_of(items.task))
    ]
    whole = np.array([items.values.sum() / items.weights.sum()])
    return items.finish.apply(np.concatenate([whole, *ratios]))


def seed_of(task: str) -> int:
    """A seed of its own for every task: one for all would give tasks of equal size the same resamples."""
    return int.from_bytes(hashlib.sha256(task.encode()).digest()[:4], "big")


def two_sided_p(differences: Floats) -> float:
    """p value of the hypothesis that a difference is 0, of its draws: twice (1 + those on the rarer side) / (1 + R)."""
    resamples = differences[1:]
    rarer = min(int((resamples <= 0).sum()), int((resamples >= 0).sum()))
    return min(1.0, 2 * (1 + rarer) / (1 + len(resamples)))


def mean_of(draws: Sequence[Floats]) -> Floats:
    """The mean over tasks, each counting alike."""
    return np.asarray(np.mean(np.stack(draws), axis=0), np.float64)


class Draws:
    """The draws of evaluations, each made once. All evaluations must have the same items in every task.

    Raises UsageError if an evaluation has other tasks or other items than the first.
    """

    def __init__(self, evaluations: Sequence[Evaluation], resamples: int = RESAMPLES) -> None:
        first, *others = evaluations
        for other in others:
            check_same_items(first, other)
        self._reference = first
        self._resamples = resamples
        self._made: dict[tuple[int, str], Floats] = {}
        self._kept: list[Evaluation] = []

    def score(self, evaluation: Evaluation, task: str) -> Floats:
        """Draws of the score of a task, [1 + R]."""
        key = (id(evaluation), task)
        if key not in self._made:
            # An evaluation that is kept keeps its id.
            self._kept.append(evaluation)
            self._made[key] = draws_of(aligned(self._reference, evaluation, task), self._resamples)
        return self._made[key]

    def gain(self, old: Evaluation, new: Evaluation, task: str) -> Floats:
        """Draws of how much better `new` is: the difference of scores, turned where lower is better."""
        sign = 1.0 if old.items[task].higher_is_better else -1.0
        return sign * (self.score(new, task) - self.score(old, task))


def check_same_items(first: Evaluation, second: Evaluation) -> None:
    """Raise UsageError unless both have the same tasks, metrics and items."""
    missing = sorted(set(first.items) ^ set(second.items))
    if missing:
        raise UsageError(
            f"{first.subject!r} and {second.subject!r} were not evaluated on the same tasks ({missing[0]!r} is missing "
            "in one of them); evaluate both on one suite."
        )
    for task, items in first.items.items():
        other = second.items[task]
        if items.metric != other.metric:
            raise UsageError(
                f"Task {task!r} was scored by {items.metric} for {first.subject!r} and by {other.metric} for "
                f"{second.subject!r}; evaluate both on one suite."
            )
        if items.ids != other.ids and sorted(items.ids) != sorted(other.ids):
            common = len(set(items.ids) & set(other.ids))
            raise UsageError(
                f"{first.subject!r} and {second.subject!r} were evaluated on different items of task {task!r}: of "
                f"{len(items)} and {len(other)}, {common} are the same; evaluate both on one suite."
            )


def aligned(reference: Evaluation, evaluation: Evaluation, task: str) -> ItemScores:
    """The items of a task in the order of the reference."""
    wanted, found = reference.items[task], evaluation.items[task]
    if wanted.ids == found.ids:
        return found
    place = {name: position for position, name in enumerate(found.ids)}
    return found.chosen([place[name] for name in wanted.ids])


def estimate_mapping(estimate: Estimate | None) -> dict[str, Any] | None:
    """As JSON has it, None staying None."""
    return None if estimate is None else estimate.to_mapping()
