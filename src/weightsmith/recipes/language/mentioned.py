"""Which checkpoints a recipe and the recipes inside it name, and in which part."""

from __future__ import annotations

from collections.abc import Iterator

from weightsmith.adapters import Reference
from weightsmith.recipes.language.schema import RecipeDocument
from weightsmith.recipes.language.vocabulary_sections import ModelToken, Tokenizer

ModelLike = Reference | RecipeDocument


def merged_references(document: RecipeDocument) -> list[Reference]:
    """Every checkpoint that is merged, in the order in which a recipe opens them: models first, the base after them."""
    return list(dict.fromkeys(_merged(document)))


def _merged(document: RecipeDocument) -> Iterator[Reference]:
    for model in _models(document):
        yield from [model] if isinstance(model, Reference) else _merged(model)


def _models(document: RecipeDocument) -> Iterator[ModelLike]:
    yield from models_of(document)
    modules = (document.modules or {}).values()
    bases = [base_of(document), *(part.base_model for part in document.slices or ())]
    bases += [module.base_model for module in modules]
    bases += [part.base_model for module in modules for part in module.slices or ()]
    yield from (model for model in bases if model is not None)


def base_of(document: RecipeDocument) -> ModelLike | None:
    """The base of the outermost merge; an expression may call it by one of the names of its checkpoints."""
    model = document.base_model
    if document.expression is not None:
        names = document.checkpoints or {}
        if model is None:
            return names.get("base")
        if isinstance(model, Reference) and str(model) in names:
            return names[str(model)]
    return model


def models_of(document: RecipeDocument) -> Iterator[ModelLike]:
    """Every model that a recipe merges but for bases, in its order."""
    yield from (entry.model for entry in document.models or ())
    yield from (source.model for part in document.slices or () for source in part.sources)
    for module in (document.modules or {}).values():
        yield from (entry.model for entry in module.models or ())
        yield from (source.model for part in module.slices or () for source in part.sources)
    yield from (document.checkpoints or {}).values()


def base_reference(document: RecipeDocument) -> Reference:
    """The base, or the checkpoint whose tokenizer it has where a recipe makes it; else the first model."""
    base = base_of(document)
    return merged_references(document)[0] if base is None else _frame(base)


def config_source_of(document: RecipeDocument) -> Reference:
    """The checkpoint whose configuration the result has: the config source, else the base, else the first model."""
    if document.donor is not None:
        return _frame(document.donor)
    return base_reference(document)


def _frame(model: ModelLike) -> Reference:
    return model if isinstance(model, Reference) else config_source_of(model)


def other_references(document: RecipeDocument) -> list[Reference]:
    """Checkpoints that are named but not merged: config sources, those that rules keep, those that assertions compare
    with.
    """
    return list(dict.fromkeys(_others(document)))


def _others(document: RecipeDocument) -> Iterator[Reference]:
    named: list[ModelLike | None] = [document.donor]
    named += [rule.keep for rule in document.rules or ()]
    named += [clause.equal.to for clause in document.assertions or () if clause.equal is not None]
    for model in named:
        if isinstance(model, Reference):
            yield model
        elif model is not None:
            yield from (*_merged(model), *_others(model))
    for model in _models(document):
        if isinstance(model, RecipeDocument):
            yield from _others(model)


def tokenizer_references(section: Tokenizer) -> list[Reference]:
    """Checkpoints that the tokenizer section names."""
    found = [section.source] if isinstance(section.source, Reference) else []
    for row in (section.tokens or {}).values():
        if isinstance(row.source, ModelToken):
            found.append(row.source.model)
        elif isinstance(row.source, Reference):
            found.append(row.source)
    return list(dict.fromkeys(found))
