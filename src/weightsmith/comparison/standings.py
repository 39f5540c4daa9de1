"""The league table: figures of every row with intervals, and ranks.

Own tasks are those of the merged experts. Tasks that none of them was trained for count as unseen, those of group
`general` as general. `normalized` is the mean over own tasks of merged over expert, the expert being the task's own
(turned where lower is better); `retained` that of (merged - base) / (expert - base); see `skill`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from weightsmith.comparison.league_entries import MeasuredCost
from weightsmith.comparison.resampling import Draws, Estimate, estimate_mapping, mean_of
from weightsmith.comparison.skill import GENERAL, normalized_draws, retained_draws
from weightsmith.evaluation import Evaluation, Floats, TaskScore

BASE, EXPERTS, AVERAGE, DEFAULT, TUNED = "base", "experts", "average", "default", "tuned"
_RANKED = (DEFAULT, TUNED)


@dataclass(frozen=True, slots=True, eq=False)
class Contestant:
    """A measured row before it is compared: who, in which setting, with which parameters.

    `at_edge` says that the tuned scale is the first or last of its grid, so that another may be better.
    """

    name: str
    setting: str
    parameters: Mapping[str, Any]
    evaluation: Evaluation
    cost: MeasuredCost | None = None
    at_edge: bool = False


@dataclass(frozen=True, slots=True)
class LeagueRow:
    """One row. `mean` is None where own tasks have several metrics; `rank` is among the rows of one setting."""

    name: str
    setting: str
    parameters: Mapping[str, Any]
    scores: tuple[TaskScore, ...]
    mean: Estimate | None
    normalized: Estimate | None
    retained: Estimate | None
    general: Estimate | None
    unseen: Estimate | None
    cost: MeasuredCost | None
    at_edge: bool = False
    rank: Estimate | None = None

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "name": self.name,
            "setting": self.setting,
            "parameters": dict(self.parameters),
            "at_edge": self.at_edge,
            "mean": estimate_mapping(self.mean),
            "normalized": estimate_mapping(self.normalized),
            "retained": estimate_mapping(self.retained),
            "general": estimate_mapping(self.general),
            "unseen": estimate_mapping(self.unseen),
            "rank": estimate_mapping(self.rank),
            "cost": None if self.cost is None else self.cost.to_mapping(),
            "scores": [score.to_mapping() for score in self.scores],
        }


def league_rows(
    base: Evaluation | None,
    experts: Mapping[str, Evaluation],
    contestants: Sequence[Contestant],
) -> tuple[LeagueRow, ...]:
    """Rows for the base, the experts on their own tasks, and the contestants by rank, tuned ones first.

    `experts` maps each own task to its expert's evaluation, on that task at least. All must have the same items.
    Without a base there is no row of it, and nothing that is measured from it.
    """
    judge = _Judge(base, experts)
    rows = [] if base is None else [judge.row(Contestant(BASE, BASE, {}, base))]
    rows.append(judge.row_of_experts())
    made = [judge.row(contestant) for contestant in contestants]
    rows += [row for row in made if row.setting not in _RANKED]
    for setting in reversed(_RANKED):
        of_setting = [i for i, row in enumerate(made) if row.setting == setting]
        ranks = _ranks([judge.normalized(contestants[i].evaluation) for i in of_setting])
        ranked = [replace(made[i], rank=rank) for i, rank in zip(of_setting, ranks, strict=True)]
        rows += sorted(ranked, key=lambda row: (row.rank.value if row.rank else 0.0, row.name))
    return tuple(rows)


def restricted(evaluation: Evaluation, tasks: Sequence[str]) -> Evaluation:
    """An evaluation with some of its tasks only, in the order given."""
    return replace(
        evaluation,
        scores=tuple(evaluation.score(task) for task in tasks),
        items={task: evaluation.items[task] for task in tasks},
    )


def joined(subject: str, parts: Mapping[str, Evaluation]) -> Evaluation:
    """One evaluation whose task comes from the evaluation that is given for it."""
    first = next(iter(parts.values()))
    return replace(
        first,
        subject=subject,
        scores=tuple(part.score(task) for task, part in parts.items()),
        items={task: part.items[task] for task, part in parts.items()},
    )


def mean_normalized(evaluation: Evaluation, experts: Mapping[str, Evaluation]) -> float:
    """The normalised score alone, without an interval; minus infinity where an expert scores 0."""
    ratios = []
    for task, expert in experts.items():
        new, own = evaluation.score(task), expert.score(task)
        over, under = (new.value, own.value) if new.higher_is_better else (own.value, new.value)
        ratios.append(over / under if under > 0 else -np.inf)
    return float(np.mean(ratios))


class _Judge:
    """Computes rows; every evaluation is restricted once, so that its draws are made once."""

    def __init__(self, base: Evaluation | None, experts: Mapping[str, Evaluation]) -> None:
        self._own = tuple(experts)
        scores = () if base is None else base.scores
        self._rest = tuple(score.task for score in scores if score.task not in experts)
        self._experts = joined(EXPERTS, experts)
        self._base = base
        self._draws = Draws([self._experts])
        self._rest_draws = Draws([restricted(base, self._rest)]) if base and self._rest else None
        self._parts: dict[tuple[int, tuple[str, ...]], Evaluation] = {}
        self._kept: list[Evaluation] = []

    def row(self, contestant: Contestant) -> LeagueRow:
        found = contestant.evaluation
        return LeagueRow(
            name=contestant.name,
            setting=contestant.setting,
            parameters=contestant.parameters,
            scores=found.scores,
            mean=self._mean(self._part(found, self._own)),
            normalized=_estimate(self.normalized(found)),
            retained=_estimate(self._retained(found)),
            general=self._change(found, general=True),
            unseen=self._change(found, general=False),
            cost=contestant.cost,
            at_edge=contestant.at_edge,
        )

    def row_of_experts(self) -> LeagueRow:
        """Every expert on its own task."""
        whole = self._experts
        return LeagueRow(
            name=EXPERTS,
            setting=EXPERTS,
            parameters={},
            scores=whole.scores,
            mean=self._mean(whole),
            normalized=_estimate(self.normalized(whole)),
            retained=_estimate(self._retained(whole)),
            general=None,
            unseen=None,
            cost=None,
        )

    def normalized(self, evaluation: Evaluation) -> Floats | None:
        """Draws of the normalised score; None where an expert's score is 0."""
        own = self._part(evaluation, self._own)
        ratios = [normalized_draws(own, self._experts, task, self._draws) for task in self._own]
        known = [ratio for ratio in ratios if ratio is not None]
        return mean_of(known) if len(known) == len(ratios) else None

    def _retained(self, evaluation: Evaluation) -> Floats | None:
        if self._base is None:
            return None
        own, base = self._part(evaluation, self._own), self._part(self._base, self._own)
        shares = [retained_draws(own, self._experts, base, task, self._draws) for task in self._own]
        known = [share for share in shares if share is not None]
        return mean_of(known) if known else None

    def _mean(self, own: Evaluation) -> Estimate | None:
        if len({score.metric for score in own.scores}) > 1:
            return None
        return _estimate(mean_of([self._draws.score(own, task) for task in self._own]))

    def _change(self, evaluation: Evaluation, *, general: bool) -> Estimate | None:
        """Improvement over the base on general tasks, or on those that are new to all merged experts."""
        if self._base is None or self._rest_draws is None:
            return None
        tasks = [
            s.task
            for s in self._base.scores
            if s.task in self._rest and (s.group == GENERAL) is general
        ]
        if not tasks:
            return None
        rest, base = self._part(evaluation, self._rest), self._part(self._base, self._rest)
        return _estimate(mean_of([self._rest_draws.gain(base, rest, task) for task in tasks]))

    def _part(self, evaluation: Evaluation, tasks: tuple[str, ...]) -> Evaluation:
        if evaluation is self._experts:
            return evaluation
        key = (id(evaluation), tasks)
        if key not in self._parts:
            self._kept.append(evaluation)
            self._parts[key] = restricted(evaluation, tasks)
        return self._parts[key]


def _estimate(draws: Floats | None) -> Estimate | None:
    return None if draws is None else Estimate.of(draws)


def _ranks(scores: Sequence[Floats | None]) -> list[Estimate | None]:
    """The rank of each by its draws, 1 the best, equals sharing the mean of their places; None where there are none."""
    known = [i for i, draws in enumerate(scores) if draws is not None]
    ranks: list[Estimate | None] = [None] * len(scores)
    if known:
        stacked = np.stack([draws for draws in scores if draws is not None])  # [M, 1 + R]
        for position, i in enumerate(known):
            better = (stacked > stacked[position]).sum(0)
            equal = (stacked == stacked[position]).sum(0) - 1
            ranks[i] = Estimate.of(1.0 + better + equal / 2)
    return ranks
