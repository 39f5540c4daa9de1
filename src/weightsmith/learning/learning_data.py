"""The data that a merge learns from: one task for each file, or for each task of a suite, and what splits they are."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from weightsmith.errors import UsageError
from weightsmith.evaluation import load_suite
from weightsmith.learning.objectives import Objective
from weightsmith.live import LiveModel
from weightsmith.statistics import (
    DataChoice,
    Samples,
    counted_labels,
    files_of_data,
    is_suite_file,
    read_data,
)
from weightsmith.tensors import expanded
from weightsmith.wording import shown

# Words in the name of a file that say that results are reported on it.
_HELD_OUT = re.compile(r"(?:^|[^a-z])(test|held[-_ ]?out|unseen)(?:[^a-z]|$)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, eq=False)
class TaskData:
    """The items of a task and where they come from."""

    name: str
    choice: DataChoice
    samples: Samples


def chosen_data(
    data: Sequence[str | Path | Samples],
    tasks: Sequence[str] = (),
    *,
    limit: int = 256,
    context: int | None = None,
    seed: int = 0,
    on_test: bool = False,
) -> list[tuple[str, DataChoice]]:
    """Which items of which tasks: all tasks of suites, or those named, and other files as one task each.

    Raises UsageError for data whose name says that results are reported on it, unless `on_test`, for a task that no
    suite has, and for two of one name.
    """
    found: dict[str, DataChoice] = {}
    wanted, there = set(tasks), []
    for source in data:
        if not isinstance(source, Samples):
            _refuse_held_out(Path(source), on_test)
        for name, choice in _of_source(source):
            there.append(name)
            if wanted and name not in wanted and choice.task is not None:
                continue
            if name in found:
                raise UsageError(f"Two of the data are called {name!r}; rename one.")
            found[name] = replace(choice, limit=limit, context=context, seed=seed)
    missing = sorted(wanted - found.keys())
    if missing:
        raise UsageError(
            f"None of the data has the task {missing[0]!r}; they have {', '.join(there) or 'none'}."
        )
    if not found:
        raise UsageError("A merge learns from data; give some with --data FILE.")
    return list(found.items())


def _of_source(source: str | Path | Samples) -> list[tuple[str, DataChoice]]:
    if isinstance(source, Samples):
        return [(source.name, DataChoice(source))]
    path = expanded(source)
    if not is_suite_file(path):
        return [(path.stem, DataChoice(path))]
    return [(task.name, DataChoice(path, task.name)) for task in load_suite(path).tasks]


def _refuse_held_out(path: Path, on_test: bool) -> None:
    found = None if on_test else _HELD_OUT.search(path.name)
    if found is not None:
        raise UsageError(
            f"{shown(path)} is called {found[1]!r}, so results are reported on it, and what learned from it would "
            "flatter itself; learn from a validation split, or say --on-test if that is meant."
        )


def read_task(model: LiveModel, name: str, choice: DataChoice, objective: Objective) -> TaskData:
    """The items of a task for a model; raises UsageError where an objective has no loss on them."""
    samples = read_data(model, choice).backward
    if samples.predictions is None:
        raise UsageError(
            f"{model.name!r} is {model.kind.value}, and {samples.name} gives it nothing to predict; give texts with "
            "labels, or queries with documents."
        )
    if objective.needs_labels and not all(counted_labels(s.labels) for s in samples.items):
        raise UsageError(
            f"Some items of {samples.name} have no label that counts, which cross_entropy needs; give labelled items, "
            "or another objective."
        )
    return TaskData(name, choice, samples)


def files_of(choices: Sequence[tuple[str, DataChoice]]) -> tuple[Path, ...]:
    """All files that are read."""
    return tuple(path for _, choice in choices for path in files_of_data(choice))
