"""Free numbers and masks as recipes write them: `{free: [0, 1.5], start: 0.3, per: layer}` where a number may stand.

Each gets a name from its place in the recipe, such as `models[1].parameters.weight`, under which it is listed and given
a value. `per: expert` is short for one in each model, and is written out when a recipe is read; the other words say
that tensors of different layers, roles or names have numbers of their own.

A mask of a task vector stands in the place of a statistics file: `{free_mask: [0, 1], start: 0.5, per: row}`, called
after the model that it stands with, `models[0].mask`. `{mask: 0.5}` has one number for all elements.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    PrivateAttr,
    Tag,
    WithJsonSchema,
    model_validator,
)

from weightsmith.checkpoints import block_label
from weightsmith.graph import FreeNumber
from weightsmith.recipes.language.document_parts import DocumentPart, inside, joined
from weightsmith.recipes.language.model_references import ModelReference
from weightsmith.recipes.language.numbers import Number
from weightsmith.recipes.language.selectors import Match
from weightsmith.tensors import Place
from weightsmith.wording import literal

EXPERT = "expert"
_BY = ("layer", "block", "tensor", "role")


def _read_per(given: Any) -> Any:
    words = list(given) if isinstance(given, (list, tuple)) else [given]
    by = [word for word in words if word in _BY]
    if not words or len(by) > 1 or any(word not in (EXPERT, *_BY) for word in words):
        raise ValueError(
            f"per: is expert, layer, block, tensor or role, or a list of expert and one of these, not {literal(given)}"
        )
    return tuple(sorted(set(words), key=(EXPERT, *_BY).index)) if len(words) > 1 else words[0]


Per = Annotated[
    str | tuple[str, ...],
    BeforeValidator(_read_per),
    WithJsonSchema(
        {
            "anyOf": [
                {"enum": [EXPERT, *_BY]},
                {"type": "array", "items": {"enum": [EXPERT, *_BY]}, "maxItems": 2},
            ]
        }
    ),
]


class FreeForm(DocumentPart):
    """A number in [low, high] that is to be found, and how many there are of it: one, or one `per` of something."""

    free: tuple[Number, Number]
    start: Number
    per: Per | None = None
    _name: str = PrivateAttr("")

    @model_validator(mode="after")
    def _ordered(self) -> FreeForm:
        low, high = self.free
        if not low < high < float("inf"):
            raise ValueError(
                f"free: [{low:g}, {high:g}] is no interval [low, high] of finite numbers"
            )
        if not low <= self.start <= high:
            raise ValueError(f"start: {self.start:g} lies outside of free: [{low:g}, {high:g}]")
        return self

    @property
    def name(self) -> str:
        """Where it stands in the recipe."""
        return self._name

    def call(self, name: str) -> None:
        """Give it its name."""
        self._name = name

    @property
    def is_per_expert(self) -> bool:
        """Whether each expert has its own."""
        return EXPERT in self._words

    @property
    def by(self) -> str | None:
        """What tensors must have in common to share a number; None where all do."""
        return next((word for word in self._words if word != EXPERT), None)

    @property
    def _words(self) -> tuple[str, ...]:
        return (self.per,) if isinstance(self.per, str) else self.per or ()

    def entries(self) -> Iterator[tuple[str, Any]]:
        """None: it stands for a number."""
        return iter(())

    def of_one_expert(self) -> FreeForm:
        """The same for one expert alone."""
        return FreeForm(free=self.free, start=self.start, per=self.by)

    def at(self, place: Place) -> FreeNumber:
        """The number of a tensor."""
        suffix = "" if self.by is None else f"[{shared_by(self.by, place)}]"
        return FreeNumber(self._name + suffix, *self.free, self.start)


def shared_by(by: str, place: Place) -> str:
    """What names the number of a tensor among those of one `per`: layers count as in `layers:` selectors."""
    if by == "layer":
        return "no layer" if place.layer is None else f"layer {place.layer}"
    if by == "block":
        return f"block {block_label(place.name)}"
    return place.kind.value if by == "role" else place.name


def is_free(given: Any) -> bool:
    """Whether data of a recipe is a free number."""
    return isinstance(given, FreeForm) or (isinstance(given, dict) and "free" in given)


def free_forms(part: Any, path: str = "") -> Iterator[tuple[str, FreeForm]]:
    """Every free number in a part of a recipe, recipes inside it included, with the path of keys to it."""
    if isinstance(part, FreeForm):
        yield path, part
        return
    for key, inner in inside(part):
        yield from free_forms(inner, joined(path, key))


# Masks ----------------------------------------------------------------------------------------------------------

MaskPer = Literal["element", "row", "column", "tensor"]


class FreeMask(DocumentPart):
    """Factors in [low, high] that are to be found, one for each element, row, column or tensor of what matches."""

    free_mask: tuple[Number, Number]
    start: Number
    per: MaskPer = "element"
    match: Match | None = None
    _name: str = PrivateAttr("")

    @model_validator(mode="after")
    def _ordered(self) -> FreeMask:
        low, high = self.free_mask
        if not low < high < math.inf or low == -math.inf:
            raise ValueError(
                f"free_mask: [{low:g}, {high:g}] is no interval [low, high] of finite numbers"
            )
        if not low <= self.start <= high:
            raise ValueError(
                f"start: {self.start:g} lies outside of free_mask: [{low:g}, {high:g}]"
            )
        return self

    @property
    def name(self) -> str:
        """Where it stands in the recipe."""
        return self._name

    def call(self, name: str) -> None:
        """Give it its name."""
        self._name = name

    def at_start(self) -> ConstantMask:
        """The mask that it starts from."""
        return ConstantMask(mask=self.start, match=self.match)

    def shape(self, weight: tuple[int, ...]) -> tuple[int, ...]:
        """That of the mask of a weight: rows are the first axis and columns the last; vectors have elements only."""
        if self.per == "tensor":
            return (1,) * len(weight)
        if self.per == "element" or len(weight) < 2:
            return weight
        if self.per == "row":
            return (weight[0], *(1,) * (len(weight) - 1))
        return (*(1,) * (len(weight) - 1), weight[-1])


class ConstantMask(DocumentPart):
    """One factor for all elements of the tensors that match."""

    mask: Number
    match: Match | None = None

    @model_validator(mode="after")
    def _finite(self) -> ConstantMask:
        if not math.isfinite(self.mask):
            raise ValueError(f"mask: {self.mask:g} is no finite number")
        return self


MaskForm = FreeMask | ConstantMask


def _form(given: Any) -> str:
    if isinstance(given, FreeMask) or (isinstance(given, dict) and "free_mask" in given):
        return "@free_mask"
    if isinstance(given, ConstantMask) or (isinstance(given, dict) and "mask" in given):
        return "@mask"
    return "@file"


# What may stand under `statistics:`.
MeasuredForm = Annotated[
    Annotated[ModelReference, Tag("@file")]
    | Annotated[FreeMask, Tag("@free_mask")]
    | Annotated[ConstantMask, Tag("@mask")],
    Discriminator(_form),
]
