"""What an evaluation found: a score for every item, for every task, and all of them together.

Results go to JSON and back without loss: `to_mapping` gives plain numbers, texts, lists and dicts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from weightsmith.errors import UsageError
from weightsmith.evaluation.intervals import Interval, bootstrap_interval
from weightsmith.evaluation.metrics import Finish, Floats
from weightsmith.wording import fault

SCHEMA = 1


@dataclass(frozen=True, slots=True, eq=False)
class ItemScores:
    """The scores of a task's items, in the order of its data.

    The score of any items is finish(sum of `values` / sum of `weights`). `ids` are the same for the same items of the
    same data whatever was evaluated, so results are paired by them. `binary` says that a value is 1 for a right and 0
    for a wrong item. `answers` are what the model answered, `expected` what was right, where there is such a thing;
    `slices` the slice of each item, if the task names a field for it.
    """

    task: str
    metric: str
    ids: tuple[str, ...]
    values: Floats
    weights: Floats
    higher_is_better: bool = True
    binary: bool = False
    finish: Finish = Finish.RATIO
    answers: tuple[str, ...] | None = None
    expected: tuple[str, ...] | None = None
    slices: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        columns = (self.values, self.weights, self.answers, self.expected, self.slices)
        if any(column is not None and len(column) != len(self.ids) for column in columns):
            raise UsageError(
                f"The item scores of task {self.task!r} have columns of other lengths."
            )
        if not self.ids:
            raise UsageError(f"Task {self.task!r} has no items.")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def value(self) -> float:
        """The score of all items."""
        return float(self.finish.apply(self.values.sum() / self.weights.sum()))

    @property
    def right(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which items are right, of a binary metric; raises UsageError for another one."""
        if not self.binary:
            raise UsageError(
                f"Task {self.task!r} is scored by {self.metric}, under which no item is right or wrong; "
                "use a task with accuracy or exact match."
            )
        return self.values > 0.5

    def chosen(self, positions: Sequence[int]) -> ItemScores:
        """Some of the items, in the order given."""
        index = np.asarray(positions, np.int64)

        def picked(column: tuple[str, ...] | None) -> tuple[str, ...] | None:
            return None if column is None else tuple(column[i] for i in index)

        return ItemScores(
            self.task,
            self.metric,
            tuple(self.ids[i] for i in index),
            self.values[index],
            self.weights[index],
            self.higher_is_better,
            self.binary,
            self.finish,
            picked(self.answers),
            picked(self.expected),
            picked(self.slices),
        )

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        content: dict[str, Any] = {
            "task": self.task,
            "metric": self.metric,
            "higher_is_better": self.higher_is_better,
            "binary": self.binary,
            "finish": self.finish.value,
            "ids": list(self.ids),
            "values": self.values.tolist(),
            "weights": self.weights.tolist(),
        }
        for name in ("answers", "expected", "slices"):
            column = getattr(self, name)
            if column is not None:
                content[name] = list(column)
        return content

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any]) -> ItemScores:
        """What `to_mapping` gave."""
        optional = {
            name: tuple(map(str, content[name])) if content.get(name) is not None else None
            for name in ("answers", "expected", "slices")
        }
        return cls(
            str(content["task"]),
            str(content["metric"]),
            tuple(map(str, content["ids"])),
            np.asarray(content["values"], np.float64),
            np.asarray(content["weights"], np.float64),
            bool(content["higher_is_better"]),
            bool(content["binary"]),
            Finish(content["finish"]),
            **optional,
        )


@dataclass(frozen=True, slots=True)
class TaskScore:
    """The score of a task with its 95 % bootstrap interval [low, high] over `items` items.

    `group` says what the task is to the models compared: `own`, `general` or `unseen`, or None.
    """

    task: str
    metric: str
    value: float
    low: float
    high: float
    items: int
    higher_is_better: bool
    group: str | None = None

    @classmethod
    def of(cls, items: ItemScores, group: str | None = None) -> TaskScore:
        """The score of items, with its interval."""
        interval: Interval = bootstrap_interval(
            items.values, items.weights, finish=items.finish, binary=items.binary
        )
        return cls(
            items.task,
            items.metric,
            items.value,
            interval.low,
            interval.high,
            len(items),
            items.higher_is_better,
            group,
        )

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any]) -> TaskScore:
        """What `to_mapping` gave."""
        group = content.get("group")
        return cls(
            str(content["task"]),
            str(content["metric"]),
            float(content["value"]),
            float(content["low"]),
            float(content["high"]),
            int(content["items"]),
            bool(content["higher_is_better"]),
            None if group is None else str(group),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """A checkpoint or recipe on a suite.

    `subject` is what the user named, `digest` that of its weights, configuration and tokenizer: equal for a recipe and
    for the checkpoint that it writes. `scores` are in the order of the suite, `items` by the name of the task.
    `cached` are the tasks whose scores were found in the cache.
    """

    subject: str
    digest: str
    suite: str
    suite_digest: str
    scores: tuple[TaskScore, ...]
    items: Mapping[str, ItemScores]
    versions: Mapping[str, str] = field(default_factory=dict)
    cached: tuple[str, ...] = ()

    def score(self, task: str) -> TaskScore:
        """The score of a task; raises UsageError if there is none of that name."""
        for score in self.scores:
            if score.task == task:
                return score
        raise UsageError(
            f"The evaluation of {self.subject!r} has no task {task!r}; it has "
            f"{', '.join(score.task for score in self.scores)}."
        )

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "schema": SCHEMA,
            "subject": self.subject,
            "digest": self.digest,
            "suite": self.suite,
            "suite_digest": self.suite_digest,
            "versions": dict(self.versions),
            "cached": list(self.cached),
            "scores": [score.to_mapping() for score in self.scores],
            "items": {name: items.to_mapping() for name, items in self.items.items()},
        }

    @classmethod
    def from_mapping(cls, content: Mapping[str, Any]) -> Evaluation:
        """What `to_mapping` gave; raises UsageError for anything else."""
        try:
            if content["schema"] != SCHEMA:
                raise UsageError(
                    f"These results have schema {content['schema']!r}, but this version reads {SCHEMA}; "
                    "evaluate again."
                )
            return cls(
                str(content["subject"]),
                str(content["digest"]),
                str(content["suite"]),
                str(content["suite_digest"]),
                tuple(TaskScore.from_mapping(score) for score in content["scores"]),
                {name: ItemScores.from_mapping(items) for name, items in content["items"].items()},
                dict(content["versions"]),
                tuple(content["cached"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(
                f"These are not the results of an evaluation ({fault(error)}); give what `evaluate --json` wrote."
            ) from error
