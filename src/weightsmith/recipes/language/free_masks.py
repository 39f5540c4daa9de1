"""Masks that are still to be found, as recipes write them: `{free: mask, over: row, start: 0.5}`.

One stands among the `statistics:` of a model, where the file with its values will be named, and is called after it:
`models[1].mask`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, PrivateAttr

from weightsmith.recipes.language.document_parts import DocumentPart, inside, joined

_ROW = 2


class FreeMask(DocumentPart):
    """A mask of the weights of a model: one number in [0, 1] for each element, row, column or tensor.

    A row is all that has one index along the first axis of a weight, a column along the second.
    """

    free: Literal["mask"]
    over: Literal["element", "row", "column", "tensor"] = "element"
    start: float = Field(default=1.0, ge=0.0, le=1.0)
    _name: str = PrivateAttr("")

    @property
    def name(self) -> str:
        """Where it stands in the recipe."""
        return self._name

    def call(self, name: str) -> None:
        """Give it its name."""
        self._name = name

    def entries(self) -> Iterator[tuple[str, Any]]:
        """None: it stands for a file."""
        return iter(())

    def shape(self, weight: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the mask of a weight; vectors have no rows and columns other than their elements."""
        if self.over == "element" or (self.over != "tensor" and len(weight) < _ROW):
            return weight
        kept = {"row": 0, "column": 1}.get(self.over)
        return tuple(length if axis == kept else 1 for axis, length in enumerate(weight))


def is_free_mask(given: Any) -> bool:
    """Whether data of a recipe is a free mask."""
    return isinstance(given, FreeMask) or (isinstance(given, dict) and "free" in given)


def one_mask(given: tuple[Any, ...]) -> tuple[Any, ...]:
    """Statistics of a model; raises ValueError where several of them are free masks."""
    if sum(isinstance(one, FreeMask) for one in given) > 1:
        raise ValueError("a model has one mask; leave the others out")
    return given


def free_masks(part: Any, path: str = "") -> Iterator[tuple[str, FreeMask]]:
    """Every free mask in a part of a recipe, recipes inside it included, with the path of keys to it."""
    if isinstance(part, FreeMask):
        yield path, part
        return
    for key, inner in inside(part):
        yield from free_masks(inner, joined(path, key))
