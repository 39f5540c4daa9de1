"""How much skill a merged model keeps: of every parent, of the base, and on tasks that nobody was trained on.

With s the score of a task:

    retained skill    (s_new - s_base) / (s_parent - s_base)     1: as good as the parent, 0: as the base
    normalised score  s_new / s_parent, the mean over tasks       (s_parent / s_new where lower is better)
    forgetting        s_base - s_new over tasks of group `general`, turned where lower is better
    generalisation    s_new - s_base over tasks of group `unseen`, likewise
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np

from weightsmith.comparison.resampling import Draws, Estimate, estimate_mapping, mean_of
from weightsmith.evaluation import Evaluation, Floats

GENERAL, UNSEEN = "general", "unseen"


@dataclass(frozen=True, slots=True)
class RetainedSkill:
    """What is left of one parent's skill on one task.

    `gained` is how much better the parent is than the base. Where its interval does not lie above 0, the parent has no
    skill there to retain, and `retained` is None. Without a base both are None.
    """

    parent: str
    task: str
    gained: Estimate | None
    retained: Estimate | None
    normalized: Estimate | None

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "parent": self.parent,
            "task": self.task,
            "gained": estimate_mapping(self.gained),
            "retained": estimate_mapping(self.retained),
            "normalized": estimate_mapping(self.normalized),
        }


@dataclass(frozen=True, slots=True)
class SkillReport:
    """Retained skill of all parents, and the figures over tasks.

    `experts` names the parent that each own task is measured by; `retained` and `normalized_score` are means over those
    tasks (of retained: those that have one). None where base, parents or tasks of a group are missing.
    """

    skills: tuple[RetainedSkill, ...]
    experts: Mapping[str, str]
    retained: Estimate | None
    normalized_score: Estimate | None
    forgetting: Estimate | None
    generalization: Estimate | None
    changes: Mapping[str, Estimate]

    def of_expert(self, task: str) -> RetainedSkill | None:
        """The skill of the expert of a task; None if the task has no expert."""
        name = self.experts.get(task)
        return next((s for s in self.skills if s.task == task and s.parent == name), None)

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "experts": dict(self.experts),
            "retained": estimate_mapping(self.retained),
            "normalized_score": estimate_mapping(self.normalized_score),
            "forgetting": estimate_mapping(self.forgetting),
            "generalization": estimate_mapping(self.generalization),
            "change_from_base": {task: e.to_mapping() for task, e in self.changes.items()},
            "skills": [skill.to_mapping() for skill in self.skills],
        }


def measure_skill(
    new: Evaluation,
    parents: Sequence[Evaluation],
    base: Evaluation | None,
    *,
    draws: Draws | None = None,
    experts: Mapping[str, str] | None = None,
) -> SkillReport:
    """What `new` keeps of its parents and of its base.

    The expert of a task is the parent whose folder has the task's name, else the one that scores best on it; `experts`
    (task to the parent's subject) says so instead, and tasks that it leaves out have none. Raises UsageError for
    evaluations of different items.
    """
    made = draws or Draws([new, *parents, *([base] if base is not None else [])])
    own = own_tasks(new)
    named = {task: expert_of(task, parents) for task in own} if experts is None else dict(experts)
    skills = [_skill(new, parent, base, task, made) for parent in parents for task in own]
    owners = {parent.subject: parent for parent in parents}
    pairs = [(task, owners[named[task]]) for task in own if task in named and parents]
    changes = (
        {}
        if base is None
        else {score.task: made.gain(base, new, score.task) for score in new.scores}
    )
    return SkillReport(
        skills=tuple(skills),
        experts={task: parent.subject for task, parent in pairs},
        retained=_estimate_of_mean(
            [
                retained
                for task, parent in pairs
                if (retained := retained_draws(new, parent, base, task, made)) is not None
            ]
        ),
        normalized_score=_estimate_of_mean(
            [
                ratio
                for task, parent in pairs
                if (ratio := normalized_draws(new, parent, task, made)) is not None
            ]
        ),
        forgetting=_estimate_of_mean([-changes[t] for t in _of_group(new, GENERAL) if changes]),
        generalization=_estimate_of_mean([changes[t] for t in _of_group(new, UNSEEN) if changes]),
        changes={task: Estimate.of(change) for task, change in changes.items()},
    )


def own_tasks(evaluation: Evaluation) -> list[str]:
    """The tasks that the models were made for: all that are of no other group."""
    return [s.task for s in evaluation.scores if s.group not in {GENERAL, UNSEEN}]


def expert_of(task: str, parents: Sequence[Evaluation]) -> str:
    """The subject of the parent named like the task, else of the best on it; empty without parents."""
    for parent in parents:
        if PurePath(parent.subject).stem == task:
            return parent.subject
    if not parents:
        return ""
    sign = 1 if parents[0].items[task].higher_is_better else -1
    return max(parents, key=lambda parent: sign * parent.score(task).value).subject


def retained_draws(
    new: Evaluation, parent: Evaluation, base: Evaluation | None, task: str, draws: Draws
) -> Floats | None:
    """Draws of the retained skill, [1 + R]; None without a base, or where the parent is not surely better than it."""
    if base is None:
        return None
    gained = draws.gain(base, parent, task)
    least = Estimate.of(gained).low
    if least <= 0:
        return None
    # Resamples below the interval of what the parent gained may come near 0, or change its sign.
    ratios: Floats = draws.gain(base, new, task) / np.maximum(gained, least)
    return ratios


def normalized_draws(new: Evaluation, parent: Evaluation, task: str, draws: Draws) -> Floats | None:
    """Draws of merged over expert, [1 + R], turned where lower is better; None where a score to divide by is 0."""
    over, under = draws.score(new, task), draws.score(parent, task)
    if not new.items[task].higher_is_better:
        over, under = under, over
    if not (under > 0).all():
        return None
    ratios: Floats = over / under
    return ratios


def _skill(
    new: Evaluation, parent: Evaluation, base: Evaluation | None, task: str, draws: Draws
) -> RetainedSkill:
    retained = retained_draws(new, parent, base, task, draws)
    normalized = normalized_draws(new, parent, task, draws)
    return RetainedSkill(
        parent=parent.subject,
        task=task,
        gained=None if base is None else Estimate.of(draws.gain(base, parent, task)),
        retained=None if retained is None else Estimate.of(retained),
        normalized=None if normalized is None else Estimate.of(normalized),
    )


def _of_group(evaluation: Evaluation, group: str) -> list[str]:
    return [score.task for score in evaluation.scores if score.group == group]


def _estimate_of_mean(draws: Sequence[Floats]) -> Estimate | None:
    return Estimate.of(mean_of(draws)) if draws else None
