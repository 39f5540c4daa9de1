"""What all parts of a recipe's schema share: unknown keys are refused with the nearest known one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError
from pydantic_core.core_schema import ValidationInfo

from weightsmith.naming import nearest
from weightsmith.wording import shown

MERGEKIT = "mergekit"


class DocumentPart(BaseModel):
    """A mapping in a recipe; `mergekit_keys` are those that mergekit's dialect has there."""

    # Built when a recipe is read: the whole document at once, and not each part by itself.
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, defer_build=True)
    mergekit_keys: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, given: Any, info: ValidationInfo) -> Any:
        if not isinstance(given, dict):
            return given
        in_mergekit = dialect_of(info) == MERGEKIT
        for key in given:
            if key not in cls.known_keys():
                raise unknown_key(str(key), cls.known_keys(), in_mergekit)
            if in_mergekit and key not in cls.mergekit_keys:
                raise PydanticCustomError(
                    "native_key",
                    "the key {name} belongs to native recipes and mergekit would ignore it; put `weightsmith: 1` on "
                    "top to use it",
                    {"key": key, "name": shown(key)},
                )
        return given

    def entries(self) -> Iterator[tuple[str, Any]]:
        """What it says, by its keys."""
        return ((key, getattr(self, key)) for key in type(self).model_fields)

    @classmethod
    def known_keys(cls) -> frozenset[str]:
        """The keys of this mapping as recipes write them."""
        return frozenset(field.alias or name for name, field in cls.model_fields.items())


def inside(part: Any) -> Iterator[tuple[Any, Any]]:
    """What a part of a recipe is made of, with the keys to it."""
    if isinstance(part, tuple):
        yield from enumerate(part)
    elif isinstance(part, dict):
        yield from part.items()
    elif isinstance(part, DocumentPart):
        yield from part.entries()


def joined(path: str, key: Any) -> str:
    """The path of keys to a part of what is at a path."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key}" if path else str(key)


def rewritten(part: Any, change: Callable[[Any], Any], beyond: frozenset[str] = frozenset()) -> Any:
    """A part of a recipe with `change` of every part in it, inner ones first; itself where nothing changes.

    What stands under the keys `beyond` of a mapping with fixed keys stays as it is.
    """
    is_document = isinstance(part, DocumentPart)
    olds = {key: old for key, old in inside(part) if not (is_document and key in beyond)}
    news = {
        key: new for key, old in olds.items() if (new := rewritten(old, change, beyond)) is not old
    }
    if news and isinstance(part, tuple):
        part = tuple(news.get(i, item) for i, item in enumerate(part))
    elif news:
        part = {**part, **news} if isinstance(part, dict) else part.model_copy(update=news)
    return change(part)


def dialect_of(info: ValidationInfo) -> str | None:
    """The dialect that is being read, from the validation's context."""
    context = info.context
    return context.get("dialect") if isinstance(context, dict) else None


def unknown_key(key: str, known: frozenset[str], in_mergekit: bool) -> PydanticCustomError:
    """The refusal of a key that means nothing where it stands."""
    # `base` is nearer to `base_model` than to `assert`, whatever letters they share.
    longer = (one for one in sorted(known) if key in one.split("_"))
    near = next(longer, None) or nearest(key, known)
    if near is not None:
        advice = f"did you mean {near!r}?"
    elif "parameters" in known:
        advice = "if it is a parameter of the method, put it under `parameters:`"
    else:
        advice = f"known are {', '.join(sorted(known))}"
    ignored = ", which mergekit would ignore without a word" if in_mergekit else ""
    return PydanticCustomError(
        "unknown_key",
        "unknown key {name}{ignored}; {advice}",
        {"key": key, "name": shown(key), "ignored": ignored, "advice": advice},
    )
