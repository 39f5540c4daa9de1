"""`--set key=value`: change single values of a recipe from outside."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from weightsmith.errors import RecipeError
from weightsmith.recipes.language.document import MOST_DEPTH, is_encodable, parse_value
from weightsmith.wording import shown


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
        if not is_encodable(assignment):
            raise RecipeError(f"The override {shown(assignment)} has bytes that are no UTF-8.")
        if not equals or not all(steps):
            raise RecipeError(f"The override {shown(assignment)} is not of the form key.key=value.")
        if len(steps) > MOST_DEPTH:
            raise RecipeError(
                f"The override {shown(assignment)} goes more than {MOST_DEPTH} keys deep; no recipe does."
            )
        value = parse_value(text, f"The override {shown(assignment)}")
        _assign(result, steps, value, assignment)
    return result


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
                f"The override {shown(assignment)} cannot be applied, because {where} is {shown(at)}, not a mapping."
            )


def _position(items: list[Any], step: str, assignment: str) -> int:
    if not step.isascii() or not step.isdigit() or len(step) > 9 or int(step) >= len(items):
        raise RecipeError(
            f"The override {shown(assignment)} cannot be applied: {shown(step)} is no position in a list "
            f"of {len(items)} (counted from 0)."
        )
    return int(step)
