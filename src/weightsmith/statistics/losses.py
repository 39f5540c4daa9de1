"""Scalars of an item whose gradients are summed, squared or not.

With log p_t(c) the log-probability of class c at prediction t of an item, y_t the label, and P predictions that count:

    labels       sum_t log p_t(y_t)                           or each t by itself
    mc           sum_t log p_t(c_t) / sqrt(S), c_t ~ p_t      S draws
    exact        sqrt(p_t(c)) log p_t(c), p_t(c) constant     every t and c

The squares of their gradients, summed, are the item's share of the diagonal of the Fisher information: of the labels
(empirical), or in expectation (mc) and exactly under the network's own distribution. Labels that are drawn
independently have scores of mean zero, so squares per token and per sequence have one expectation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightsmith.live import IGNORED
from weightsmith.statistics.log_probabilities import LogProbabilities
from weightsmith.statistics.samples import Sample
from weightsmith.statistics.wanted import Wanted

if TYPE_CHECKING:
    from torch import Tensor

# Elements that are held in float64.
_AT_ONCE = 1 << 20
# How a draw's seed follows from those of the collection, the item and the draw.
_ITEMS, _DRAWS = 1 << 20, 1 << 40


@dataclass(frozen=True, slots=True)
class ItemScalar:
    """A scalar of an item: where its labels come from, and the one prediction and class that it is of, if it is of one.

    `source` is labels, mc or exact; `is_squared` and `is_summed` tell what its gradient is for.
    """

    source: str
    draw: int = 0
    draws: int = 1
    seed: int = 0
    place: int | None = None
    label: int | None = None
    is_squared: bool = False
    is_summed: bool = False

    def of(self, logs: LogProbabilities, labels: Tensor) -> Tensor:
        """The scalar, [], for log-probabilities [P, C] and labels [P]."""
        counted = labels != IGNORED
        if self.source == "labels":
            return self._chosen(logs.of_classes(labels.clamp(min=0)), counted)
        if self.source == "exact":
            own = self._chosen(
                logs.of_classes(labels.new_full(labels.shape, self.label or 0)), counted
            )
            return own * own.detach().exp().sqrt()
        drawn = self._drawn(logs.values)
        return self._chosen(logs.of_classes(drawn), counted) / math.sqrt(self.draws)

    def _chosen(self, taken: Tensor, counted: Tensor) -> Tensor:
        if self.place is not None:
            return taken[self.place]
        return taken.masked_fill(~counted, 0.0).sum()

    def _drawn(self, log_probabilities: Tensor) -> Tensor:
        """A class for every prediction, by its own probabilities: the first whose share of the sum is above a draw."""
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        chance = torch.rand(len(log_probabilities), 1, generator=generator, dtype=torch.float64)
        chance = chance.to(log_probabilities.device)
        step = max(1, _AT_ONCE // max(log_probabilities.shape[1], 1))
        found = []
        for start in range(0, len(log_probabilities), step):
            stop = start + step
            shares = log_probabilities[start:stop].double().exp_().cumsum(1)
            below = shares <= chance[start:stop] * shares[:, -1:]
            found.append(below.sum(1).clamp(max=shares.shape[1] - 1))
        return torch.cat(found)


def scalars_of(wanted: Wanted, sample: Sample, number: int) -> Iterator[ItemScalar]:
    """The scalars of an item, by its number, that what is wanted is made of."""
    labels = sample.labels
    assert labels is not None
    places = [i for i, label in enumerate(labels.tolist()) if label != IGNORED]
    squares = "fisher" in wanted.kinds
    by_label = squares and wanted.estimator == "empirical" and wanted.per == "sequence"
    if "gradients" in wanted.kinds or by_label:
        summed = "gradients" in wanted.kinds
        yield ItemScalar("labels", is_squared=by_label, is_summed=summed)
    if squares and not by_label:
        yield from _squared(wanted, places, number, sample.classes)


def _squared(wanted: Wanted, places: list[int], number: int, classes: int) -> Iterator[ItemScalar]:
    if wanted.estimator == "exact":
        for place in places:
            for label in range(classes):
                yield ItemScalar("exact", place=place, label=label, is_squared=True)
        return
    parts = places if wanted.per == "token" else [None]
    if wanted.estimator == "empirical":
        for part in parts:
            yield ItemScalar("labels", place=part, is_squared=True)
        return
    for draw in range(wanted.draws):
        seed = (wanted.seed * _DRAWS + number * _ITEMS + draw) % (1 << 62)
        for part in parts:
            yield ItemScalar("mc", draw, wanted.draws, seed, part, is_squared=True)
