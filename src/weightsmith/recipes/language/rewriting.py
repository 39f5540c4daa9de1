"""A recipe with other models in it, or the same models under other paths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

from weightsmith.adapters import Reference
from weightsmith.recipes.language.document_parts import DocumentPart, rewritten
from weightsmith.recipes.language.mentioned import ModelLike
from weightsmith.recipes.language.schema import RecipeDocument

Part = TypeVar("Part", bound=DocumentPart)

# Where references are to files, or to checkpoints that no recipe makes.
_NO_MODELS = frozenset({"statistics", "tokenizer", "tokenizer_source"})


def with_models(part: Part, change: Callable[[Reference], ModelLike]) -> Part:
    """A part of a recipe with `change` of every checkpoint that might be a recipe as well, also of recipes inside."""
    made: Part = _changed(part, change, _NO_MODELS)
    return made


def with_paths(document: RecipeDocument, change: Callable[[str], str]) -> RecipeDocument:
    """A recipe with `change` of every path in it: of checkpoints, adapters and statistics."""

    def moved(reference: Reference) -> Reference:
        adapters = tuple(replace(one, path=change(one.path)) for one in reference.adapters)
        made = replace(reference, path=change(reference.path), adapters=adapters)
        return reference if made == reference else made

    made: RecipeDocument = _changed(document, moved)
    return made


def _changed(
    part: Any, change: Callable[[Reference], ModelLike], beyond: frozenset[str] = frozenset()
) -> Any:
    return rewritten(part, lambda one: change(one) if isinstance(one, Reference) else one, beyond)
