"""From what the schema refuses to one sentence with line, column and the nearest thing that was meant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from weightsmith.errors import RecipeError
from weightsmith.recipes.language.document import Place, YamlDocument
from weightsmith.wording import literal, shown

_MOST_SHOWN = 4
# What pydantic's kinds of errors mean to someone who writes YAML.
_WANTED = {
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
    "dict_type": "a mapping of keys",
    "tuple_type": "a list",
    "list_type": "a list",
    "string_type": "text (quotes make it text)",
    "string_unicode": "text without halves of characters",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "literal_error": "{expected}",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number from {ge} on",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number up to {le}",
    "finite_number": "a finite number",
    "too_long": "a list of at most {max_length} values",
    "too_short": "a list of at least {min_length} values",
}
# How a mapping is written of whose keys only the first was given, by the class that reads it.
_MEANT = {"ModelEntry": "`model: {given}`", "Tokenizer": "`{{source: {given}}}`"}


def recipe_error(problem: ValidationError, document: YamlDocument) -> RecipeError:
    """The refusal of a document in one sentence, however many mistakes it has."""
    details = problem.errors(include_url=False, include_input=True)
    told = [detail for detail in details if not _follows(detail, details)]
    sentences = list(dict.fromkeys(_sentence(detail, document) for detail in told))
    shown = "; ".join(sentences[:_MOST_SHOWN])
    more = len(sentences) - _MOST_SHOWN
    if more > 0:
        return RecipeError(f"{shown}; and {more} more mistakes.")
    return RecipeError(shown if shown.endswith("?") else f"{shown}.")


def _follows(detail: Any, details: Sequence[Any]) -> bool:
    """Whether a list is too short only because its items were refused."""
    place = detail["loc"]
    return detail["type"] == "too_short" and any(
        len(other["loc"]) > len(place) and other["loc"][: len(place)] == place for other in details
    )


def _sentence(detail: Any, document: YamlDocument) -> str:
    place = _place(detail["loc"], document.data)
    context = detail.get("ctx") or {}
    if "key" in context:
        place = (*place, context["key"])
    path = _path(place)
    return f"{document.where(place)}: {path}{_what(detail).rstrip('.')}"


def _what(detail: Any) -> str:
    kind, message = detail["type"], str(detail["msg"])
    given = detail.get("input")
    if kind == "missing":
        missing = detail["loc"][-1]
        return (
            f"the key {missing!r} is missing"
            if isinstance(missing, str)
            else f"expected a list of {missing + 1} values, not {literal(given)}"
        )
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    if kind in ("unknown_key", "native_key"):
        return message
    if kind == "too_short" and not given:
        return "the list is empty; give at least one"
    wanted = _WANTED.get(kind)
    if wanted is None:
        return f"{literal(given)} cannot stand here"
    context = detail.get("ctx", {})
    meant = _MEANT.get(context.get("class_name", "")) if isinstance(given, str) else None
    advice = f"; write {meant.format(given=shown(given)[1:-1])}" if meant else ""
    return f"expected {wanted.format(**context)}, not {literal(given)}{advice}"


def _place(location: tuple[Any, ...], data: Any) -> Place:
    """The path of keys in the data, without the names of forms that the schema puts in between."""
    place: list[Any] = []
    at: Any = data
    for step in location:
        if isinstance(step, str) and step.startswith("@"):
            continue
        if (isinstance(at, dict) and step in at) or (
            isinstance(at, list) and isinstance(step, int) and step < len(at)
        ):
            place.append(step)
            at = at[step]
    return tuple(place)


def _path(place: Place) -> str:
    if not place:
        return ""
    text = ""
    for step in place:
        key = shown(step)[1:-1]
        text += f"[{step}]" if isinstance(step, int) else f".{key}" if text else key
    return f"{text}: "
