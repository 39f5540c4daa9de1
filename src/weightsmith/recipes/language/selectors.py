"""Which tensors a rule, a conditional parameter or an assertion is about."""

from __future__ import annotations

from pydantic import StrictInt, StrictStr, field_validator, model_validator

from weightsmith.checkpoints import COMPONENTS, is_in_block, is_in_component, labels_in
from weightsmith.errors import RecipeError
from weightsmith.naming import compile_glob, compile_regex, is_found, nearest
from weightsmith.recipes.language.document_parts import DocumentPart
from weightsmith.tensors import Kind, Place, depth_of

_ROLE_NAMES = frozenset(kind.value for kind in Kind) | {
    kind.value.partition(".")[0] for kind in Kind
}


class Match(DocumentPart):
    """A selector: all keys that are given must hold.

    `role` is a kind or a family of kinds (`attention` includes `attention.q`), or a list of which one must hold;
    `layers` is half open, `[0, 8]` being the first eight layers of the output; `name` is a regular expression
    searched in the output tensor's name; `glob` a pattern for the whole name; `block` a block of an image model, a
    range of them or a list (`checkpoints/image_models/image_blocks.py` has the labels), `component` one of its parts.
    """

    role: StrictStr | tuple[StrictStr, ...] | None = None
    layers: tuple[StrictInt, StrictInt] | None = None
    name: StrictStr | None = None
    glob: StrictStr | None = None
    block: StrictStr | tuple[StrictStr, ...] | None = None
    component: StrictStr | None = None

    @field_validator("role")
    @classmethod
    def _known_role(cls, role: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        for one in (role,) if isinstance(role, str) else role or ():
            if one not in _ROLE_NAMES:
                near = nearest(one, _ROLE_NAMES)
                hint = (
                    f"did you mean {near!r}?"
                    if near
                    else f"known are {', '.join(sorted(_ROLE_NAMES))}"
                )
                raise ValueError(f"There is no role called {one!r}; {hint}")
        return role

    @model_validator(mode="after")
    def _meaningful(self) -> Match:
        if all(value is None for _, value in self.entries()):
            raise ValueError("match: is empty; give role, layers, name, glob, block or component")
        if self.layers is not None and not 0 <= self.layers[0] < self.layers[1]:
            raise ValueError(
                f"match: layers {list(self.layers)} is not a range [first, end) with first < end"
            )
        if self.name is not None:
            _checked_regex(self.name)
        if self.component is not None and self.component not in COMPONENTS:
            known = ", ".join(COMPONENTS)
            raise ValueError(f"there is no component {self.component!r}; known are {known}")
        _ = self.blocks
        return self

    @property
    def blocks(self) -> tuple[str, ...]:
        """The labels of `block`, ranges written out."""
        given = (self.block,) if isinstance(self.block, str) else self.block or ()
        return tuple(label for text in given for label in labels_in(text))

    def place_among_blocks(self, place: Place) -> float:
        """Where the block of a tensor stands among those selected, from 0 for the first to 1 for the last."""
        blocks = self.blocks
        at = next(i for i, label in enumerate(blocks) if is_in_block(place.name, label))
        return depth_of(at, len(blocks))

    def matches(self, place: Place) -> bool:
        """Whether a tensor is selected."""
        if self.layers is not None and (
            place.layer is None or not self.layers[0] <= place.layer < self.layers[1]
        ):
            return False
        if self.name is not None and not is_found(self.name, place.name):
            return False
        if self.glob is not None and not compile_glob(self.glob).match(place.name):
            return False
        if self.block is not None and not any(is_in_block(place.name, b) for b in self.blocks):
            return False
        if self.component is not None and not is_in_component(place.name, self.component):
            return False
        if self.role is None:
            return True
        roles = (self.role,) if isinstance(self.role, str) else self.role
        return any(place.kind.matches(role) for role in roles)


def _checked_regex(pattern: str) -> None:
    try:
        compile_regex(pattern)
    except RecipeError as problem:
        raise ValueError(str(problem)) from None
