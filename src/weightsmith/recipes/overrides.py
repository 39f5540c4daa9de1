"""`--set key=value`: change single values of a recipe from outside."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import yaml

from weightsmith.errors import RecipeError


def override(document: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """A copy of a raw document with each `path=value` applied; nothing is changed in place.

    A path is keys and list positions with dots between (`models.0.parameters.weight`); mappings on the way
    are made where they are missing; values are read as YAML. Raises RecipeError for a path that cannot be
    followed.
    """
    result = copy.deepcopy(document)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        steps = path.strip().split(".")
        if not equals or not all(steps):
            raise RecipeError(f"The override {assignment!r} is not of the form key.key=value.")
        _assign(result, steps, _value(text, assignment), assignment)
    return result


def _value(text: str, assignment: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise RecipeError(
            f"The value in the override {assignment!r} is not valid YAML; put it in quotes."
        ) from None


def _assign(document: dict[str, Any], steps: list[str], value: Any, assignment: str) -> None:
    at: Any = document
    for i, step in enumerate(steps):
        is_last = i == len(steps) - 1
        if isinstance(at, list):
            position = _position(at, step, assignment)
            if is_last:
                at[position] = value
            at = at[position]
        elif isinstance(at, dict):
            if is_last:
                at[step] = value
            elif at.get(step) is None:
                at[step] = {}
            at = at[step]
        else:
            where = ".".join(steps[:i])
            raise RecipeError(
                f"The override {assignment!r} cannot be applied, because {where} is {at!r}, not a mapping."
            )


def _position(items: list[Any], step: str, assignment: str) -> int:
    if not step.isascii() or not step.isdigit() or int(step) >= len(items):
        raise RecipeError(
            f"The override {assignment!r} cannot be applied: {step!r} is no position in a list "
            f"of {len(items)} (counted from 0)."
        )
    return int(step)
