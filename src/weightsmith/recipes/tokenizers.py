"""The tokenizer sections of a recipe, as far as copying the donor's tokenizer answers them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weightsmith.errors import RecipeError
from weightsmith.recipes.references import ModelRef
from weightsmith.recipes.schema import RecipeDocument

if TYPE_CHECKING:
    from weightsmith.recipes.merging import Resolver, Result
    from weightsmith.recipes.views import View

# How old versions of mergekit marked a model as the source of a tokenizer.
_OLD_PREFIX = "model:"


def require_copied_tokenizer(document: RecipeDocument, result: Result, resolver: Resolver) -> View:
    """The source of the tokenizer to copy.

    Raises RecipeError for all that needs tokenizers to be aligned or rewritten: a union, single
    tokens, padding, another vocabulary, a chat template.
    """
    section = document.tokenizer
    if document.chat_template is not None:
        raise RecipeError(
            "chat_template: changing a chat template is not supported yet; leave it out to keep the donor's."
        )
    wanted: Any = document.tokenizer_source
    if section is not None:
        if section.tokens or section.pad_to_multiple_of is not None:
            given = "tokens" if section.tokens else "pad_to_multiple_of"
            raise RecipeError(
                f"tokenizer: `{given}` needs embeddings to be rebuilt, which is not supported yet; "
                "leave it out to keep the donor's tokenizer."
            )
        wanted = section.source
    if wanted is None:
        return result.donor
    text = str(wanted) if isinstance(wanted, (str, ModelRef)) else None
    if text is not None and text.startswith(_OLD_PREFIX):
        wanted = text = text.removeprefix(_OLD_PREFIX)
    if text == "union":
        raise RecipeError(
            "tokenizer: a union of tokenizers is not supported yet; use `tokenizer_source: base` where all models have "
            "one vocabulary."
        )
    if text == "base":
        return result.base or result.donor
    model = ModelRef.model_validate(wanted) if isinstance(wanted, (str, dict)) else wanted
    view = resolver.view(model, result.semantics, "tokenizer")
    mine, theirs = result.donor.checkpoint.vocab_size, view.checkpoint.vocab_size
    if mine != theirs:
        raise RecipeError(
            f"tokenizer: {view.label!r} has {theirs} tokens but the merged model has {mine}, and aligning them is not "
            "supported yet; use a model of the same vocabulary."
        )
    return view
