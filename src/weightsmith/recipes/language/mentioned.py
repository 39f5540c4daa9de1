"""Which checkpoints a recipe and the recipes inside it name, and in which part."""

from __future__ import annotations

from collections.abc import Iterator

from weightsmith.recipes.language.model_references import ModelRef
from weightsmith.recipes.language.schema import RecipeDocument
from weightsmith.recipes.language.vocabulary_sections import ModelToken, Tokenizer

ModelLike = ModelRef | RecipeDocument


def merged_references(document: RecipeDocument) -> list[str]:
    """Every checkpoint that is merged, in the order in which a recipe opens them: models first, the base after them."""
    return list(dict.fromkeys(_merged(document)))


def _merged(document: RecipeDocument) -> Iterator[str]:
    for model in _models(document):
        yield from [str(model)] if isinstance(model, ModelRef) else _merged(model)


def merged_model(document: RecipeDocument, reference: str) -> ModelRef | None:
    """What a recipe, or one inside it, writes for the checkpoint that it merges as `reference`."""
    for model in _models(document):
        if isinstance(model, ModelRef):
            found = model if str(model) == reference else None
        else:
            found = merged_model(model, reference)
        if found is not None:
            return found
    return None


def _models(document: RecipeDocument) -> Iterator[ModelLike]:
    yield from (entry.model for entry in document.models or ())
    yield from (source.model for part in document.slices or () for source in part.sources)
    modules = (document.modules or {}).values()
    for module in modules:
        yield from (entry.model for entry in module.models or ())
        yield from (source.model for part in module.slices or () for source in part.sources)
    yield from (document.checkpoints or {}).values()
    base = _base(document)
    bases = [base, *(part.base_model for part in document.slices or ())]
    bases += [module.base_model for module in modules]
    bases += [part.base_model for module in modules for part in module.slices or ()]
    yield from (model for model in bases if model is not None)


def _base(document: RecipeDocument) -> ModelLike | None:
    model = document.base_model
    if document.expression is not None:
        names = document.checkpoints or {}
        if model is None:
            return names.get("base")
        if isinstance(model, ModelRef) and str(model) in names:
            return names[str(model)]
    return model


def base_reference(document: RecipeDocument) -> str:
    """The base, or the checkpoint whose tokenizer it has where a recipe makes it; else the first model."""
    base = _base(document)
    return merged_references(document)[0] if base is None else _frame(base)


def config_source_of(document: RecipeDocument) -> str:
    """The checkpoint whose configuration the result has: the donor, else the base, else the first model."""
    if document.donor is not None:
        return _frame(document.donor)
    return base_reference(document)


def _frame(model: ModelLike) -> str:
    return str(model) if isinstance(model, ModelRef) else config_source_of(model)


def other_references(document: RecipeDocument) -> list[str]:
    """Checkpoints that are named but not merged: donors, those that rules keep, those that assertions compare with."""
    return list(dict.fromkeys(_others(document)))


def _others(document: RecipeDocument) -> Iterator[str]:
    named: list[ModelLike | None] = [document.donor]
    named += [rule.keep for rule in document.rules or ()]
    named += [clause.equal.to for clause in document.assertions or () if clause.equal is not None]
    for model in named:
        if isinstance(model, ModelRef):
            yield str(model)
        elif model is not None:
            yield from (*_merged(model), *_others(model))
    for model in _models(document):
        if isinstance(model, RecipeDocument):
            yield from _others(model)


def tokenizer_references(section: Tokenizer) -> list[str]:
    """Checkpoints that the tokenizer section names."""
    found = [str(section.source)] if isinstance(section.source, ModelRef) else []
    for row in (section.tokens or {}).values():
        if isinstance(row.source, ModelToken):
            found.append(str(row.source.model))
        elif isinstance(row.source, ModelRef):
            found.append(str(row.source))
    return list(dict.fromkeys(found))
