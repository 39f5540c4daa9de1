"""Whose outputs a task is learned from: the expert of its name, the one in its place, or the one that is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath

from weightsmith.adapters import Reference, located
from weightsmith.errors import UsageError
from weightsmith.recipes import Recipe


def teachers_of(recipe: Recipe, tasks: Sequence[str], said: Mapping[str, str]) -> dict[str, str]:
    """The teacher of every task.

    Raises UsageError where a task has none, and for a teacher of a task that there is not.
    """
    names = list(dict.fromkeys(tasks))
    for name in said:
        if name not in names:
            raise UsageError(
                f"There is no task {name!r} that a teacher could be of; there are {', '.join(names)}."
            )
    experts = _experts(recipe)
    by_name = {_called(expert): expert for expert in experts}
    found = {}
    for place, name in enumerate(names):
        if name in said:
            found[name] = said[name]
        elif name in by_name:
            found[name] = by_name[name]
        elif len(experts) == len(names) and not set(names) & by_name.keys():
            found[name] = experts[place]
        else:
            raise UsageError(
                f"Which model teaches the task {name!r} is not clear; say it with --teacher {name}=MODEL."
            )
    return found


def _experts(recipe: Recipe) -> list[str]:
    entries = recipe.document.models or ()
    references = [e.model for e in entries if isinstance(e.model, Reference)]
    base = recipe.document.base_model
    return [str(located(r, recipe.base_dir)) for r in references if r != base]


def _called(expert: str) -> str:
    """The last part of a path; of BASE+ADAPTER that of the adapter."""
    return PurePath(expert.rpartition("+")[2]).name
