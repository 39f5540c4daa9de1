"""The forms in which a recipe gives a parameter, and the value that each form has for one tensor.

A setting is a scalar, a free number, a *gradient* (a list of scalars or free numbers spread over depth), or a list of
*conditions* of which the first that matches counts; weights of an image model's blocks are short for conditions.
Settings of several levels are tried from the closest to the widest; the first that has a value for the tensor wins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, StrictStr, Tag, model_validator

from weightsmith.checkpoints import FAMILIES
from weightsmith.graph import free
from weightsmith.methods import Parameter
from weightsmith.recipes.language.document import number
from weightsmith.recipes.language.document_parts import DocumentPart
from weightsmith.recipes.language.free_forms import FreeForm, free_forms, is_free
from weightsmith.recipes.language.image_interfaces.block_weights import (
    has_block_weights,
    spelled_out,
)
from weightsmith.recipes.language.selectors import Match
from weightsmith.tensors import Place
from weightsmith.wording import literal


def _read_scalar(given: Any) -> bool | int | float | str:
    if isinstance(given, str):
        spelled = number(given)
        return given if spelled is None else spelled
    if isinstance(given, (bool, int, float)):
        return given
    raise ValueError(f"expected a number, true, false or a word, not {literal(given)}")


Scalar = Annotated[Any, BeforeValidator(_read_scalar)]


def _entry_form(given: Any) -> str:
    return "@free" if is_free(given) else "@scalar"


_Entry = Annotated[
    Annotated[FreeForm, Tag("@free")] | Annotated[Scalar, Tag("@scalar")],
    Discriminator(_entry_form),
]
Gradient = tuple[_Entry, ...]


def _value_form(given: Any) -> str:
    return "@gradient" if isinstance(given, (list, tuple)) else _entry_form(given)


ValueForm = Annotated[
    Annotated[Gradient, Tag("@gradient")]
    | Annotated[FreeForm, Tag("@free")]
    | Annotated[Scalar, Tag("@scalar")],
    Discriminator(_value_form),
]


class Condition(DocumentPart):
    """A value with the tensors it is for: `filter` is a part of a name, or `*`; `match` a selector."""

    mergekit_keys = frozenset({"value", "filter"})

    value: ValueForm
    filter: StrictStr | None = None
    match: Match | None = None

    @model_validator(mode="after")
    def _one_selector(self) -> Condition:
        if self.filter is not None and self.match is not None:
            raise ValueError("a condition has either filter or match, not both")
        if self.goes_along_blocks and set(FAMILIES) & set(self._blocks):
            raise ValueError(
                "a gradient goes along blocks with numbers; write a range such as IN00-IN11 instead of a family"
            )
        return self

    @property
    def goes_along_blocks(self) -> bool:
        """Whether the value is a gradient along the blocks that are selected, and not along depth."""
        return isinstance(self.value, tuple) and bool(self._blocks)

    @property
    def _blocks(self) -> tuple[str, ...]:
        return () if self.match is None else self.match.blocks

    def holds(self, filtered_name: str, place: Place) -> bool:
        """Whether the condition is met: filters look at `filtered_name`, selectors at the output tensor."""
        if self.match is not None:
            return self.match.matches(place)
        return self.filter is None or self.filter == "*" or self.filter in filtered_name


def _is_condition(given: Any) -> bool:
    return isinstance(given, (dict, Condition)) and not is_free(given)


def _wrap_condition(given: Any) -> Any:
    if has_block_weights(given):
        return spelled_out(given)
    return [given] if _is_condition(given) else given


def _setting_form(given: Any) -> str:
    if not isinstance(given, (list, tuple)):
        return _entry_form(given)
    conditions = sum(map(_is_condition, given))
    if conditions and conditions < len(given):
        return "@mixed"
    return "@conditions" if conditions else "@gradient"


def _refuse_mixture(given: Any) -> Any:
    raise ValueError(
        f"a list holds either plain values (a gradient) or mappings (conditions), not both: {literal(given)}"
    )


Setting = Annotated[
    Annotated[Scalar, Tag("@scalar")]
    | Annotated[FreeForm, Tag("@free")]
    | Annotated[Gradient, Tag("@gradient")]
    | Annotated[tuple[Condition, ...], Tag("@conditions")]
    | Annotated[Any, BeforeValidator(_refuse_mixture), Tag("@mixed")],
    Discriminator(_setting_form),
    BeforeValidator(_wrap_condition),
]


def _require_mapping(given: Any) -> Any:
    if given is not None and not isinstance(given, dict):
        raise ValueError(f"expected a mapping of names to values, not {literal(given)}")
    return given


Settings = Annotated[dict[str, Setting], BeforeValidator(_require_mapping)]


class _Absent:
    """The value of a setting that has none for a tensor."""

    def __repr__(self) -> str:
        return "absent"


ABSENT: Any = _Absent()


@dataclass(slots=True)
class Lookup:
    """One parameter with its settings from the closest level to the widest.

    A gradient v of n numbers has the value (1 - f) v[i] + f v[i + 1] at depth t, with s = t (n - 1),
    i = floor(s) and f = s - i; one of bools or words has v[floor(s)]. `is_by_name`: the value depends on more than
    the depth.
    """

    parameter: Parameter
    settings: tuple[Any, ...]
    where: str
    preset: str
    is_by_name: bool = field(init=False)
    _known: dict[float, Any] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.is_by_name = any(_is_by_name(setting) for setting in self.settings)

    def at(self, filtered_name: str, place: Place) -> Any:
        """The value for one tensor, or ABSENT where no level gives one.

        Raises RecipeError for a value that the parameter cannot have.
        """
        if self.is_by_name:
            return self._search(filtered_name, place)
        if place.depth not in self._known:
            self._known[place.depth] = self._search(filtered_name, place)
        return self._known[place.depth]

    def _search(self, filtered_name: str, place: Place) -> Any:
        for setting in self.settings:
            found = self._value(setting, filtered_name, place)
            if found is not ABSENT:
                return found
        return ABSENT

    def _value(self, setting: Any, filtered_name: str, place: Place) -> Any:
        if not isinstance(setting, tuple):
            return self._checked(setting, place)
        if not setting:
            return ABSENT
        if isinstance(setting[0], Condition):
            for condition in setting:
                if condition.holds(filtered_name, place):
                    if condition.match is not None and condition.goes_along_blocks:
                        place = replace(place, depth=condition.match.place_among_blocks(place))
                    return self._value(condition.value, filtered_name, place)
            return ABSENT
        return self._interpolated(setting, place)

    def _interpolated(self, gradient: Sequence[Any], place: Place) -> Any:
        values = [self._checked(item, place) for item in gradient]
        scaled = place.depth * (len(values) - 1)
        i = int(scaled)
        if self.parameter.kind not in (int, float):
            return values[i]
        j = min(len(values) - 1, i + 1)
        fraction = scaled - i
        return self._checked((1 - fraction) * values[i] + fraction * values[j], place)

    def _checked(self, given: Any, place: Place) -> Any:
        if isinstance(given, FreeForm):
            return free(given.at(place))
        is_number = self.parameter.kind in (int, float)
        if is_number and isinstance(given, bool) and self.preset == "mergekit":
            given = int(given)
        return self.parameter.check(given, self.where, self.preset)


def _is_by_name(setting: Any) -> bool:
    is_list = isinstance(setting, tuple) and setting and isinstance(setting[0], Condition)
    if is_list and not _is_catch_all(setting[0]):
        return True
    return any(form.by is not None for _, form in free_forms(setting))


def _is_catch_all(condition: Condition) -> bool:
    return condition.match is None and condition.filter in (None, "*")


def lookups(
    parameters: Mapping[str, Parameter],
    levels: Sequence[Mapping[str, Any]],
    *,
    per_expert: bool,
    where: str,
    preset: str,
) -> tuple[Lookup, ...]:
    """A lookup for each parameter of one kind that some level mentions; levels go from the closest to the widest."""
    found = []
    for key, parameter in parameters.items():
        settings = tuple(level[key] for level in levels if key in level)
        if parameter.per_expert == per_expert and settings:
            found.append(Lookup(parameter, settings, where, preset))
    return tuple(found)
