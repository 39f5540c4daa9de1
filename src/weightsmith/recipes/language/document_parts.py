"""What all parts of a recipe's schema share: unknown keys are refused with the nearest known one."""

from __future__ import annotations

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

    @classmethod
    def known_keys(cls) -> frozenset[str]:
        """The keys of this mapping as recipes write them."""
        return frozenset(field.alias or name for name, field in cls.model_fields.items())


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
