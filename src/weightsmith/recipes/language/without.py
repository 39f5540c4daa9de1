"""A recipe as it would have been written without one of its models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from weightsmith.adapters import Reference
from weightsmith.errors import RecipeError
from weightsmith.recipes.language.mentioned import ModelLike, tokenizer_references
from weightsmith.recipes.language.recipe import Recipe
from weightsmith.recipes.language.schema import (
    Clause,
    ModelEntry,
    Module,
    RecipeDocument,
    RecipeRule,
    Slice,
    SliceSource,
    plain,
)

Entry = TypeVar("Entry", ModelEntry, SliceSource)


def without(recipe: Recipe, reference: str) -> Recipe:
    """The recipe with the model `reference` taken out of models, slices, modules and the recipes inside it.

    Its parameters and statistics go with it, and so do a recipe inside that merges nothing else, a `donor:` that names
    it and assertions that compare with it. Raises RecipeError where no recipe is left that means the same for the
    others: where it is a base, the only model, the only source of a slice, part of an expression, kept by a rule, or
    named by the tokenizer section.
    """
    reduced = _Removal(reference).document(recipe.document)
    if reduced is None:
        raise RecipeError(
            f"{reference!r} is the only model that the recipe merges, so nothing is left without it."
        )
    if reduced == recipe.document:
        raise RecipeError(
            f"{reference!r} is not among the models that the recipe merges; name one that is."
        )
    made = Recipe.load(plain(reduced), base_dir=recipe.base_dir)
    return replace(made, base_dir=recipe.base_dir)


class _Removal:
    def __init__(self, reference: str) -> None:
        self._reference = reference

    def document(self, document: RecipeDocument) -> RecipeDocument | None:
        """The recipe without the model, or None where it merges no other."""
        self._refuse_fixed_roles(document)
        changes: dict[str, object] = {
            "donor": None if self._is(document.donor) else document.donor,
            "assertions": self._assertions(document.assertions),
        }
        if document.expression is not None:
            self._refuse_in_expression(document)
        elif document.models is not None:
            models = self._entries(document.models)
            if not models:
                return None
            changes["models"] = models
        elif document.slices is not None:
            changes["slices"] = self._slices(document.slices, "slices")
        else:
            changes["modules"] = {
                name: self._module(name, module)
                for name, module in (document.modules or {}).items()
            }
        return document.model_copy(update=changes)

    def _is(self, model: ModelLike | None) -> bool:
        return isinstance(model, Reference) and str(model) == self._reference

    def _is_in(self, model: ModelLike | None) -> bool:
        """Whether a model is the one, or a recipe that merges it."""
        return self._is(model) or (
            isinstance(model, RecipeDocument) and self.document(model) != model
        )

    def _entries(self, entries: Iterable[Entry]) -> tuple[Entry, ...]:
        kept: list[Entry] = []
        for entry in entries:
            model = entry.model
            if isinstance(model, RecipeDocument):
                inner = self.document(model)
                if inner is not None:
                    same = inner == model
                    kept.append(entry if same else entry.model_copy(update={"model": inner}))
            elif not self._is(model):
                kept.append(entry)
        return tuple(kept)

    def _slices(self, slices: Sequence[Slice], where: str) -> tuple[Slice, ...]:
        reduced = []
        for i, part in enumerate(slices):
            sources = self._entries(part.sources)
            if not sources:
                raise RecipeError(
                    f"{self._reference!r} is the only source of {where}[{i}], whose layers nothing else gives."
                )
            self._refuse_base(part.base_model, f"{where}[{i}]")
            reduced.append(part.model_copy(update={"sources": sources}))
        return tuple(reduced)

    def _module(self, name: str, module: Module) -> Module:
        self._refuse_base(module.base_model, f"modules.{name}")
        if module.slices is not None:
            slices = self._slices(module.slices, f"modules.{name}.slices")
            return module.model_copy(update={"slices": slices})
        models = self._entries(module.models or ())
        if not models:
            raise RecipeError(
                f"{self._reference!r} is the only model of module {name!r}, so nothing is left of that without it."
            )
        return module.model_copy(update={"models": models})

    def _assertions(self, clauses: tuple[Clause, ...] | None) -> tuple[Clause, ...] | None:
        kept = [c for c in clauses or () if c.equal is None or not self._is_in(c.equal.to)]
        return tuple(kept) or None

    def _refuse_fixed_roles(self, document: RecipeDocument) -> None:
        self._refuse_base(document.base_model, "the recipe")
        rule: RecipeRule | None = next(
            (r for r in document.rules or () if self._is_in(r.keep)), None
        )
        if rule is not None:
            raise RecipeError(
                f"A rule keeps tensors of {self._reference!r}; write the recipe without it."
            )
        named = () if document.tokenizer is None else tokenizer_references(document.tokenizer)
        source = document.tokenizer_source
        if any(map(self._is, named)) or (isinstance(source, Reference) and self._is(source)):
            raise RecipeError(
                f"The tokenizer section takes tokens of {self._reference!r}; write the recipe without it."
            )

    def _refuse_base(self, base: ModelLike | None, where: str) -> None:
        if self._is_in(base):
            raise RecipeError(
                f"{self._reference!r} is the base of {where}, or in it, which every model is measured from; "
                "it cannot be taken out."
            )

    def _refuse_in_expression(self, document: RecipeDocument) -> None:
        if any(self._is_in(model) for model in (document.checkpoints or {}).values()):
            raise RecipeError(
                f"The expression {document.expression!r} computes with {self._reference!r}, and does not say what "
                "stays of it without that; write the expression that is meant."
            )
