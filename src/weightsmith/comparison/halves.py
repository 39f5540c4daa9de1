"""One suite for two purposes: half of every task's items to tune on, the others to report.

Which half an item is in depends on its task and its id alone, through a hash, so it is the same for every model, for
every run, and whatever order the data has: every second item would be one class of data that alternate.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from weightsmith.errors import UsageError
from weightsmith.evaluation import Evaluation, ItemScores, TaskScore

WHOLE = "whole"


def half_of(evaluation: Evaluation, *, first: bool) -> Evaluation:
    """An evaluation with the first or the second half of the items of each task; the second has the odd one.

    Raises UsageError for a task of a single item.
    """
    items = {name: _half(own, first=first) for name, own in evaluation.items.items()}
    scores = tuple(TaskScore.of(items[score.task], score.group) for score in evaluation.scores)
    return replace(evaluation, scores=scores, items=items)


def _half(items: ItemScores, *, first: bool) -> ItemScores:
    if len(items) < 2:
        raise UsageError(
            f"Task {items.task!r} has a single item, which cannot be halved; give a suite to tune on with --validation."
        )
    order = sorted(range(len(items)), key=lambda place: _hash(items.task, items.ids[place]))
    middle = len(items) // 2
    return items.chosen(sorted(order[:middle] if first else order[middle:]))


def _hash(task: str, identity: str) -> bytes:
    return hashlib.sha256(f"{task}\0{identity}".encode()).digest()
