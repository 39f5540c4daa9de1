"""From what the schema refuses to one sentence with line, column and the nearest thing that was meant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from weightsmith.errors import RecipeError
from weightsmith.recipes.document import Place, YamlDocument

_MOST_SHOWN = 4


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
        return f"the key {detail['loc'][-1]!r} is missing"
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    if kind in ("unknown_key", "native_key"):
        return message
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"expected a mapping of keys, not {given!r}"
    if kind in ("tuple_type", "list_type"):
        return f"expected a list, not {given!r}"
    if kind == "string_type":
        return f"expected text, not {given!r} (quotes make it text)"
    if kind == "int_type":
        return f"expected a whole number, not {given!r}"
    if kind == "bool_type":
        return f"expected true or false, not {given!r}"
    if kind == "too_short" and not given:
        return "the list is empty; give at least one"
    return f"{message[:1].lower()}{message[1:]}, not {given!r}"


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
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return f"{text}: "
