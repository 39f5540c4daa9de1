"""The free numbers of a recipe over checkpoints at hand, and the ordinary recipe with values in their places."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from weightsmith.adapters import Reference
from weightsmith.checkpoints import BareAdapter, block_label
from weightsmith.errors import RecipeError
from weightsmith.graph import FreeNumber, ValuedPath, following, free_in
from weightsmith.naming import nearest
from weightsmith.recipes.language.document_parts import rewritten
from weightsmith.recipes.language.free_forms import FreeForm, FreeMask
from weightsmith.recipes.language.free_recipes import (
    free_masks,
    has_free,
    needs_headers,
    spelled,
    written_numbers,
)
from weightsmith.recipes.language.parameter_settings import Condition
from weightsmith.recipes.language.recipe import Recipe
from weightsmith.recipes.language.schema import RecipeDocument
from weightsmith.recipes.language.selectors import Match
from weightsmith.recipes.resolution.formula import Merge, OutputTensor, Resolved, formulas_in
from weightsmith.recipes.resolution.free_formulas import Values, numbers_of, own_scalars
from weightsmith.recipes.resolution.masks import MaskNumbers, file_of_values, free_mask_numbers
from weightsmith.recipes.resolution.resolve import Opened, resolve
from weightsmith.tensors import Place
from weightsmith.wording import literal, shown

# Values of free numbers, and files of those of masks, by their names.
Given = Mapping[str, float | str | Path]


@dataclass(frozen=True, slots=True)
class OpenRecipe:
    """A recipe with free numbers: `numbers` by name, in the order of the recipe, and so are its free `masks`.

    `resolved` has the formulas with the numbers in them, None where the models are adapters, whose recipe alone tells
    all of them. It is what `path` says: for values of which something else is true `resolved_for` gives another.
    """

    recipe: Recipe
    opened: Opened | None
    numbers: Mapping[str, FreeNumber]
    resolved: Resolved | None
    path: ValuedPath
    masks: Mapping[str, MaskNumbers] = field(default_factory=dict)

    def resolved_for(self, values: Values, nearby: Values | None = None) -> OpenRecipe:
        """The same with the formulas that stand for these values; with others `nearby`, for those around them."""
        if self.resolved is None or self.path.is_same_for(values, nearby):
            return self
        path = ValuedPath(values, nearby)
        with following(path):
            resolved = resolve(self.recipe, self.opened)
        return replace(self, resolved=resolved, path=path, masks=_masks(self.recipe, resolved))

    def tensors(self) -> Counter[str]:
        """How many tensors each number is in."""
        outputs = () if self.resolved is None else self.resolved.outputs
        return Counter(number.name for output in outputs for number in numbers_of([output]))

    def filled(self, values: Given | Literal["start"]) -> Recipe:
        """The ordinary recipe with `values`, which are of all numbers and masks; see `fill`."""
        if values == "start":
            return _filled(self, complete(self.numbers, values), {})
        given = values if isinstance(values, Mapping) else {}
        own = {name: value for name, value in given.items() if name not in self.masks}
        numbers = complete(self.numbers, own if isinstance(values, Mapping) else values)
        files = {name: file_of_values(mask, given.get(name)) for name, mask in self.masks.items()}
        return _filled(self, numbers, files)


def open_recipe(recipe: Recipe, opened: Opened | None = None) -> OpenRecipe | None:
    """The free numbers of a recipe over the headers of its checkpoints, None where it has none."""
    if not has_free(recipe.document):
        return None
    numbers = {number.name: number for number in written_numbers(recipe.document)}
    path = ValuedPath({})
    try:
        with following(path):
            resolved = resolve(recipe, opened)
    except BareAdapter:
        if needs_headers(recipe.document):
            raise RecipeError(
                "Numbers per layer, tensor or role are for merges of checkpoints; the models of this recipe are "
                "adapters."
            ) from None
        return OpenRecipe(recipe, opened, numbers, None, path)
    every = (*resolved.outputs, *resolved.measured)
    numbers |= {number.name: number for number in numbers_of(every)}
    return OpenRecipe(recipe, opened, numbers, resolved, path, _masks(recipe, resolved))


def _masks(recipe: Recipe, resolved: Resolved) -> dict[str, MaskNumbers]:
    forms = [form for _, form in free_masks(recipe.document)]
    if not forms:
        return {}
    made = (*resolved.outputs, *resolved.measured)
    found = free_mask_numbers(forms, resolved.checkpoints, made)
    return {mask.name: mask for mask in found}


def fill(recipe: Recipe, values: Given | Literal["start"], opened: Opened | None = None) -> Recipe:
    """The ordinary recipe that a recipe with free numbers is for their `values`, by name, or where they start.

    A number per layer, tensor or role becomes a list of conditions, and a mask the file that is its value, so what was
    found can be merged, verified and replayed like any other recipe. Raises RecipeError for names that the recipe has
    not, for numbers and masks without a value, and for values outside of their bounds.
    """
    found = open_recipe(recipe, opened)
    if found is None:
        complete({}, values)
        return recipe
    return found.filled(values)


def complete(
    numbers: Mapping[str, FreeNumber], values: Given | Literal["start"]
) -> dict[str, float]:
    """A value within its bounds for every number, in their order; see `fill`."""
    if values == "start":
        return {name: number.start for name, number in numbers.items()}
    if not isinstance(values, Mapping):
        raise RecipeError(f"Values are a mapping of names to numbers, not {literal(values)}.")
    for name in values:
        if name not in numbers:
            raise RecipeError(
                f"The recipe has no free number {shown(name)}; {_known(name, numbers)}"
            )
    return {name: _value(number, values) for name, number in numbers.items()}


def _known(name: str, numbers: Mapping[str, FreeNumber]) -> str:
    near = nearest(str(name), numbers)
    if near is not None:
        return f"did you mean {near!r}?"
    return f"it has {', '.join(list(numbers)[:8]) or 'none'}."


def _value(number: FreeNumber, values: Given) -> float:
    given = values.get(number.name)
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        lacking = "has no value" if given is None else f"cannot be {literal(given)}"
        raise RecipeError(f"The free number {number.name!r} {lacking}; give it a number.")
    if not (math.isfinite(given) and number.low <= given <= number.high):
        raise RecipeError(
            f"The free number {number.name!r} lies in [{number.low:g}, {number.high:g}], but was given {given!r}."
        )
    return float(given)


def _filled(found: OpenRecipe, values: Values, files: Mapping[str, Path]) -> Recipe:
    places = _places(found)

    def change(part: Any) -> Any:
        if isinstance(part, FreeForm):
            return values[part.name] if part.by is None else part
        if isinstance(part, FreeMask):
            file = files.get(part.name)
            return part.at_start() if file is None else Reference(str(file))
        if isinstance(part, tuple):
            return tuple(one for item in part for one in conditions(item))
        if isinstance(part, RecipeDocument):
            return spelled(part, values)
        if isinstance(part, dict):
            return {key: _setting(item, conditions) for key, item in part.items()}
        return part

    def conditions(item: Any) -> Iterator[Any]:
        form = item.value if isinstance(item, Condition) else None
        if not isinstance(form, FreeForm):
            yield item
            return
        own = places.get(form.name, [])
        for number, match in own:
            yield Condition(value=values[number], match=_both(item.match, match))
        if not own or own[-1][1] is not None:
            # What no merge is made of in the end is looked up too.
            yield Condition(value=form.start, match=item.match)

    document = rewritten(found.recipe.document, change)
    return replace(found.recipe, document=document)


def _setting(item: Any, conditions: Any) -> Any:
    if not isinstance(item, FreeForm):
        return item
    return tuple(conditions(Condition(value=item)))


def _both(outer: Match | None, inner: Match | None) -> Match | None:
    """What both select, the inner one being narrower in all that it says."""
    if outer is None or inner is None:
        return outer or inner
    return Match(**{**outer.model_dump(), **inner.model_dump(exclude_none=True)})


def _places(found: OpenRecipe) -> dict[str, list[tuple[str, Match | None]]]:
    """For every number that there are several of, the name of each with the tensors it is of."""
    forms: dict[str, FreeForm] = {}

    def note(part: Any) -> Any:
        if isinstance(part, FreeForm) and part.by is not None:
            forms[part.name] = part
        return part

    rewritten(found.recipe.document, note)
    if found.resolved is None:
        return {}
    reached = _reached((*found.resolved.outputs, *found.resolved.measured))
    return {
        name: sorted(_of_form(form, reached), key=_specific_first) for name, form in forms.items()
    }


def _of_form(form: FreeForm, reached: Mapping[str, Place]) -> Iterator[tuple[str, Match | None]]:
    for name, place in reached.items():
        if name == form.at(place).name:
            yield name, _match(form.by, place)


def _reached(outputs: Iterable[OutputTensor]) -> dict[str, Place]:
    """The place of a merge that each number is in."""
    found: dict[str, Place] = {}
    for output in outputs:
        for formula in formulas_in(output.formula):
            if isinstance(formula, Merge):
                for number in free_in(own_scalars(formula)).values():
                    found.setdefault(number.name, formula.place)
    return found


_SPECIAL = re.compile(r"[*?\[\]!\\]")


def _match(by: str | None, place: Place) -> Match | None:
    if by == "layer":
        return None if place.layer is None else Match(layers=(place.layer, place.layer + 1))
    if by == "block":
        return Match(block=block_label(place.name))
    if by == "role":
        return Match(role=place.kind.value)
    if _SPECIAL.search(place.name):
        return Match(name=f"^{re.escape(place.name)}$")
    return Match(glob=place.name)


def _specific_first(entry: tuple[str, Match | None]) -> tuple[bool, int]:
    """Kinds of a family before the family, and what is in no layer last."""
    match = entry[1]
    role = "" if match is None or not isinstance(match.role, str) else match.role
    return match is None, -role.count(".")
