"""Masks of task vectors as recipes write them, in the place of a statistics file of kind mask.

`{free_mask: [0, 1], start: 0.5, per: row}` is one whose numbers are to be found, called after the model that it stands
with: `models[0].mask`. `{mask: 0.5}` has one number for all elements.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Discriminator, PrivateAttr, Tag, model_validator

from weightsmith.recipes.language.document_parts import DocumentPart
from weightsmith.recipes.language.model_references import ModelReference
from weightsmith.recipes.language.numbers import Number
from weightsmith.recipes.language.selectors import Match

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
