"""Flips: items that change between right and wrong from an old model to a new one.

Of N items, with acc1 and acc2 the accuracies of the old and the new model:

    negative flip rate  NFR = #(old right, new wrong) / N
    positive flip rate  PFR = #(old wrong, new right) / N         acc2 - acc1 = PFR - NFR
    relative NFR        NFR / (acc1 (1 - acc2))                   1 where the two err independently
    backward trust      BTC = #(both right) / #(old right)        = 1 - NFR / acc1
    backward errors     BEC = #(both wrong) / #(new wrong)
    inconsistency       #(both wrong, answers differ) / N
    NFR_mc              #(new wrong, answers differ) / N          = NFR + inconsistency

Yan et al., CVPR 2021 (flips); Srivastava et al., KDD 2020 (BTC, BEC); Echterhoff et al., EMNLP Findings 2024 (MUSCLE,
sec. 3.2: NFR_mc, and gain and regression of graded metrics). Inconsistency is the part of NFR_mc that is no flip.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.errors import UsageError
from weightsmith.evaluation import Floats, ItemScores


@dataclass(frozen=True, slots=True)
class Flips:
    """What happened to the items of a task whose metric knows right and wrong.

    `negative` and `positive` are the ids of items that became wrong and right, `inconsistent` of those that both models
    have wrong with different answers (None where answers are not known), all in the order of the data.
    """

    items: int
    both_right: int
    both_wrong: int
    negative: tuple[str, ...]
    positive: tuple[str, ...]
    inconsistent: tuple[str, ...] | None = None

    @property
    def old_right(self) -> int:
        """Items that the old model has right."""
        return self.both_right + len(self.negative)

    @property
    def new_wrong(self) -> int:
        """Items that the new model has wrong."""
        return self.both_wrong + len(self.negative)

    @property
    def negative_rate(self) -> float:
        """NFR."""
        return len(self.negative) / self.items

    @property
    def positive_rate(self) -> float:
        """PFR."""
        return len(self.positive) / self.items

    @property
    def relative_negative_rate(self) -> float | None:
        """NFR over what independent errors would give; None where the old is never right or the new never wrong."""
        if not self.old_right or not self.new_wrong:
            return None
        return len(self.negative) * self.items / (self.old_right * self.new_wrong)

    @property
    def backward_trust(self) -> float | None:
        """BTC; None where the old model has nothing right."""
        return self.both_right / self.old_right if self.old_right else None

    @property
    def backward_errors(self) -> float | None:
        """BEC; None where the new model has nothing wrong."""
        return self.both_wrong / self.new_wrong if self.new_wrong else None

    @property
    def inconsistency(self) -> float | None:
        """Share of items that both have wrong with different answers; None where answers are not known."""
        return None if self.inconsistent is None else len(self.inconsistent) / self.items

    @property
    def changed_wrong_rate(self) -> float | None:
        """NFR_mc: share of items that the new model has wrong with another answer; None where answers are unknown."""
        if self.inconsistent is None:
            return None
        return (len(self.negative) + len(self.inconsistent)) / self.items

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it, rates and ids."""
        return {
            "items": self.items,
            "both_right": self.both_right,
            "both_wrong": self.both_wrong,
            "negative_rate": self.negative_rate,
            "positive_rate": self.positive_rate,
            "relative_negative_rate": self.relative_negative_rate,
            "backward_trust": self.backward_trust,
            "backward_errors": self.backward_errors,
            "inconsistency": self.inconsistency,
            "changed_wrong_rate": self.changed_wrong_rate,
            "negative": list(self.negative),
            "positive": list(self.positive),
            "inconsistent": None if self.inconsistent is None else list(self.inconsistent),
        }


@dataclass(frozen=True, slots=True)
class Graded:
    """What happened to the items of a task whose metric has degrees.

    With d the improvement of an item's score (turned where lower is better), w its weight, and t the tolerance,

        gain       = sum w d / sum w    over the items with d > t        (MUSCLE's m_g; 0 without any)
        regression = sum w (-d) / sum w over the items with d < -t       (m_r)

    and the same sums over the weights of all items are `overall_gain` and `overall_regression`, whose difference at
    tolerance 0 is the improvement of the task's score (before an exponential, for perplexity: in nats). `regressed` and
    `improved` are the ids of the items that count.
    """

    items: int
    tolerance: float
    gain: float
    regression: float
    overall_gain: float
    overall_regression: float
    improved: tuple[str, ...]
    regressed: tuple[str, ...]

    @property
    def regressed_rate(self) -> float:
        """Share of items that became worse."""
        return len(self.regressed) / self.items

    @property
    def improved_rate(self) -> float:
        """Share of items that became better."""
        return len(self.improved) / self.items

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "items": self.items,
            "tolerance": self.tolerance,
            "gain": self.gain,
            "regression": self.regression,
            "overall_gain": self.overall_gain,
            "overall_regression": self.overall_regression,
            "improved_rate": self.improved_rate,
            "regressed_rate": self.regressed_rate,
            "improved": list(self.improved),
            "regressed": list(self.regressed),
        }


def find_flips(old: ItemScores, new: ItemScores) -> Flips:
    """The flips between two models on the same items in the same order.

    Raises UsageError for other items, and for a metric under which no item is right or wrong.
    """
    _check_paired(old, new)
    before, after = old.right, new.right
    both_wrong = ~before & ~after
    inconsistent = None
    if old.answers is not None and new.answers is not None:
        differ = np.array([a != b for a, b in zip(old.answers, new.answers, strict=True)], bool)
        inconsistent = _named(old.ids, both_wrong & differ)
    return Flips(
        items=len(old),
        both_right=int((before & after).sum()),
        both_wrong=int(both_wrong.sum()),
        negative=_named(old.ids, before & ~after),
        positive=_named(old.ids, ~before & after),
        inconsistent=inconsistent,
    )


def find_regressions(old: ItemScores, new: ItemScores, tolerance: float = 0.0) -> Graded:
    """Gain and regression between two models on the same items in the same order.

    `tolerance` is in the metric's own unit for one item (bits per byte, nats per token, nDCG). Items are weighted as
    the old model's are. Raises UsageError for other items and a negative tolerance.
    """
    _check_paired(old, new)
    if not tolerance >= 0:
        raise UsageError(f"A tolerance must be 0 or more, not {tolerance}.")
    sign = 1.0 if old.higher_is_better else -1.0
    better = sign * (_per_item(new) - _per_item(old))
    gained, lost = better > tolerance, better < -tolerance
    gain, regression = _weighted(old.weights, better, gained), _weighted(old.weights, -better, lost)
    whole = float(old.weights.sum())
    return Graded(
        items=len(old),
        tolerance=tolerance,
        gain=_ratio(gain, float(old.weights[gained].sum())),
        regression=_ratio(regression, float(old.weights[lost].sum())),
        overall_gain=_ratio(gain, whole),
        overall_regression=_ratio(regression, whole),
        improved=_named(old.ids, gained),
        regressed=_named(old.ids, lost),
    )


def _weighted(weights: Floats, scores: Floats, chosen: NDArray[np.bool_]) -> float:
    return float((weights[chosen] * scores[chosen]).sum())


def _ratio(total: float, weight: float) -> float:
    return total / weight if weight else 0.0


def _per_item(items: ItemScores) -> Floats:
    """Value over weight; 0 for an item without weight, which counts for nothing."""
    empty = items.weights == 0
    scores: Floats = np.where(empty, 0.0, items.values / np.where(empty, 1.0, items.weights))
    return scores


def _check_paired(old: ItemScores, new: ItemScores) -> None:
    if old.ids != new.ids:
        raise UsageError(
            f"Task {old.task!r}: the two models were scored on different items, or in another order."
        )


def _named(ids: tuple[str, ...], chosen: Iterable[Any]) -> tuple[str, ...]:
    return tuple(name for name, is_chosen in zip(ids, chosen, strict=True) if is_chosen)
