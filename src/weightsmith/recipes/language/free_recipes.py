"""Recipes with free numbers and masks: what these are called, and the recipe with values in their places."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from weightsmith.errors import RecipeError
from weightsmith.graph import FreeNumber, free_in
from weightsmith.recipes.language.document_parts import inside, joined, rewritten
from weightsmith.recipes.language.free_forms import FreeForm, FreeMask, free_forms
from weightsmith.recipes.language.schema import (
    ModelEntry,
    Module,
    RecipeDocument,
    Slice,
    SliceSource,
)

_STEP = re.compile(r"((?:then|modify)\[\d+\])\.parameters")
_MASK = re.compile(r"\.statistics\[\d+\]$")
_FREE = re.compile(r"\bfree\s*\(")


def with_names(document: RecipeDocument) -> RecipeDocument:
    """A recipe whose free numbers have names, those of each expert being written with the models.

    The name is the path of keys to a number, without `parameters.` where that is the whole recipe's.
    """
    spread: RecipeDocument = rewritten(document, _spread)
    for path, inner in _documents(spread, ""):
        inner.place_at(path)
    for path, form in free_forms(spread):
        if not form.name:
            form.call(_STEP.sub(r"\1", path).removeprefix("parameters."))
    for path, mask in free_masks(spread):
        if not mask.name:
            mask.call(_MASK.sub(".mask", path))
    _require_one_each(spread)
    return spread


def _require_one_each(document: RecipeDocument) -> None:
    names = [mask.name for _, mask in free_masks(document)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RecipeError(f"{twice.removesuffix('.mask')} has two free masks; leave one out.")


def free_masks(part: Any, path: str = "") -> Iterator[tuple[str, FreeMask]]:
    """Every free mask in a part of a recipe, recipes inside it included, with the path of keys to it."""
    if isinstance(part, FreeMask):
        yield path, part
    for key, inner in inside(part):
        yield from free_masks(inner, joined(path, key))


def expression_path(path: str) -> str:
    """What the free numbers of the expression of a recipe at `path` are called, but for their order."""
    return f"{path}.expression" if path else "expression"


def has_free(document: RecipeDocument) -> bool:
    """Whether a recipe, or one inside it, has free numbers."""
    return bool(names_in(document))


def names_in(document: RecipeDocument) -> tuple[str, ...]:
    """What tells the free numbers of a recipe from those of another that is written alike."""
    names = [form.name for _, form in free_forms(document)]
    names += [mask.name for _, mask in free_masks(document)]
    for _, inner in _documents(document, ""):
        if inner.expression is not None and _FREE.search(inner.expression):
            names.append(expression_path(inner.path))
    return tuple(names)


def needs_headers(document: RecipeDocument) -> bool:
    """Whether only the checkpoints tell how many free numbers there are."""
    masks = any(True for _ in free_masks(document))
    return masks or any(form.by is not None for _, form in free_forms(document))


def written_numbers(document: RecipeDocument) -> tuple[FreeNumber, ...]:
    """The free numbers that a recipe alone tells: all but those of layers, tensors and roles."""
    forms = {form.name: form for _, form in free_forms(document) if form.by is None}
    found = [FreeNumber(name, *form.free, form.start) for name, form in forms.items()]
    for _, inner in _documents(document, ""):
        found += _expression_numbers(inner)
    return tuple({number.name: number for number in found}.values())


def _expression_numbers(document: RecipeDocument) -> list[FreeNumber]:
    if document.expression is None or not _FREE.search(document.expression):
        return []
    from weightsmith.recipes.language.expression_reading import parse_expression, scalars_in

    called = expression_path(document.path)
    read = parse_expression(
        document.expression, document.checkpoints or {}, document.semantics or "paper", called
    )
    return list(free_in(scalars_in(read)).values())


def spelled(document: RecipeDocument, values: Mapping[str, float]) -> RecipeDocument:
    """One recipe with values in the places of the free numbers of its expression."""
    if document.expression is None or not _FREE.search(document.expression):
        return document
    from weightsmith.recipes.language.free_calls import filled_text

    text = filled_text(document.expression, expression_path(document.path), values)
    return document.model_copy(update={"expression": text})


def _documents(part: Any, path: str) -> Iterator[tuple[str, RecipeDocument]]:
    """A recipe and all that are inside it, with their paths."""
    if isinstance(part, RecipeDocument):
        yield path, part
    for key, inner in inside(part):
        yield from _documents(inner, joined(path, key))


def _spread(part: Any) -> Any:
    """A part of a recipe with a number that each expert has of its own written with the models below it."""
    if isinstance(part, (RecipeDocument, Module)) and part.models:
        return _over_sources(part, part.models, "models")
    return _over_sources(part, part.sources, "sources") if isinstance(part, Slice) else part


def _over_sources(
    owner: RecipeDocument | Module | Slice, sources: Sequence[ModelEntry | SliceSource], key: str
) -> Any:
    own = {
        name: setting
        for name, setting in (owner.parameters or {}).items()
        if isinstance(setting, FreeForm) and setting.is_per_expert
    }
    if not own:
        return owner
    kept = {name: v for name, v in (owner.parameters or {}).items() if name not in own}
    given = tuple(_with_own(source, own, owner.base_model) for source in sources)
    return owner.model_copy(update={"parameters": kept or None, key: given})


def _with_own(source: Any, own: Mapping[str, FreeForm], base: Any) -> Any:
    if source.model == base:
        return source
    news = {name: form.of_one_expert() for name, form in own.items()}
    return source.model_copy(update={"parameters": {**news, **(source.parameters or {})}})
