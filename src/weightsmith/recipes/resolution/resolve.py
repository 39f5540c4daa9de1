"""Resolution: a recipe and the headers of its checkpoints give the formula of every output tensor."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from weightsmith.adapters import Reference, located, open_model
from weightsmith.checkpoints import Checkpoint
from weightsmith.errors import RecipeError
from weightsmith.findings import Finding
from weightsmith.graph import EqualMagnitudes
from weightsmith.recipes.language.dialect import with_native_keys
from weightsmith.recipes.language.recipe import Recipe
from weightsmith.recipes.language.schema import RecipeDocument
from weightsmith.recipes.language.vocabulary_sections import Tokenizer
from weightsmith.recipes.resolution.block_findings import idle_blocks
from weightsmith.recipes.resolution.boundary_findings import boundary_findings_of
from weightsmith.recipes.resolution.formula import OutputTensor, Resolved, merges_in
from weightsmith.recipes.resolution.input_chain import Views
from weightsmith.recipes.resolution.inputs import Inputs
from weightsmith.recipes.resolution.merging import Resolver
from weightsmith.recipes.resolution.postprocess import assertions, tied_outputs
from weightsmith.recipes.resolution.spelled_views import spelled_views
from weightsmith.recipes.resolution.views import View
from weightsmith.recipes.resolution.vocabulary_comparison import compare_vocabularies
from weightsmith.tensors import parse_size

if TYPE_CHECKING:
    from weightsmith.vocabularies import Outcome

Opener = Callable[[Reference], Checkpoint]
Opened = Mapping[str, Checkpoint] | Opener

_DEFAULT_SHARD = 5 * 10**9
_UNLIMITED = 2**62


def resolve(recipe: Recipe, opened: Opened | None = None) -> Resolved:
    """Answer every question of a recipe from headers and configurations; no tensor data is read.

    `opened` gives the checkpoint of a model: a mapping from what the recipe writes for it (`PATH`, `PATH@REVISION`,
    `BASE+ADAPTER`), a function of its `Reference`, or None to open them here. What does not fit together is gathered in
    `findings`, all of it at once. Raises RecipeError where the recipe means nothing for any checkpoints, and
    CheckpointError where one cannot be opened.
    """
    document = recipe.document
    inputs = Inputs(opener_of(recipe, opened))
    views, vocabulary = _chained(recipe, inputs)
    resolver = Resolver(inputs, views, unties=document.untie or False)
    result = resolver.result(document, inherited="paper", scope="merge")
    outputs = tied_outputs(result)
    if vocabulary is None:
        vocabulary = compare_vocabularies(document, result, outputs, inputs)
    checks = assertions(document, result, outputs)
    measured = _measured_only(outputs, inputs.recipe_views.values())
    return Resolved(
        outputs=tuple(outputs),
        checkpoints=dict(inputs.checkpoints),
        config_source=result.config_source.config_label,
        base=result.base.config_label if result.base is not None else None,
        layer_sources=result.layer_sources,
        findings=(
            *recipe.findings,
            *_worded(inputs.problems.findings(), recipe.semantics),
            *boundary_findings_of(outputs, inputs.checkpoints),
            *idle_blocks(document, outputs),
        ),
        assertions=checks,
        seed=document.seed or 0,
        shard_bytes=_shard_bytes_of(document.shard_size, result.config_source, inputs),
        nonfinite=document.nonfinite or "error",
        recipe=recipe,
        out_dtype=result.output_dtype,
        stack=result.stack,
        statistics=tuple(measured.label for measured in inputs.statistics.values()),
        vocabulary=vocabulary,
        measured=measured,
        equal_magnitudes=EqualMagnitudes(document.equal_magnitudes or "hash"),
    )


def _chained(recipe: Recipe, inputs: Inputs) -> tuple[Views, Outcome | None]:
    """The views that the recipe and those inside it take, and what became of their vocabularies.

    Each step of the chain is a line here, in the order in which they follow one another. Adapters come before all of
    them, where a reference is opened, and untying after them, which is decided recipe by recipe.
    """
    views = spelled_views(recipe.document, inputs)
    vocabulary = None
    section = _tokenizer_section(recipe.document)
    if section is not None:
        # Most recipes have none, and the aligning of vocabularies is a third of what reads recipes.
        from weightsmith.recipes.resolution.tokenizers import aligned_views

        views, vocabulary = aligned_views(recipe, section, views, inputs.problems)
    return views, vocabulary


def _measured_only(
    outputs: Sequence[OutputTensor], inner: Collection[View]
) -> tuple[OutputTensor, ...]:
    """Tensors of recipes inside the recipe that belong to a merge of the outputs, but are in none of them."""
    if not inner:
        return ()
    merges = [merge for output in outputs for merge in merges_in(output.formula)]
    scopes = {merge.scope_id for merge in merges}
    reached = {(merge.scope_id, merge.place.name) for merge in merges}
    found = []
    for view in inner:
        for item in view.items.values():
            own = {
                (merge.scope_id, merge.place.name)
                for merge in merges_in(item.formula)
                if merge.scope_id in scopes
            }
            if not own <= reached:
                reached |= own
                found.append(replace(item.renamed(f"{item.name} of {view.label}"), tied_to=None))
    return tuple(found)


def _worded(findings: Sequence[Finding], semantics: str) -> Sequence[Finding]:
    return findings if semantics != "mergekit" else [with_native_keys(f) for f in findings]


def _shard_bytes_of(given: str | int | None, source: View, inputs: Inputs) -> int:
    """As `shard_bytes`, but without a limit where none is asked for and the config source is one file.

    Interfaces of image models read whole files alone, which their users give as models.
    """
    found = inputs.checkpoints[source.config_label]
    is_file = given is None and not found.is_folder
    return _UNLIMITED if is_file else shard_bytes(given)


def shard_bytes(given: str | int | None) -> int:
    """Bytes of a `shard_size` such as `5GB`, `500 MiB` or 1000000; 5 GB for None.

    Raises RecipeError for anything else, and for less than one byte.
    """
    try:
        return _DEFAULT_SHARD if given is None else parse_size(given)
    except ValueError as problem:
        raise RecipeError(f"shard_size: {problem}.") from None


def _tokenizer_section(document: RecipeDocument) -> Tokenizer | None:
    """The tokenizer section of a recipe, however it is written."""
    if document.tokenizer is None and document.tokenizer_source is not None:
        return Tokenizer(source=document.tokenizer_source)
    return document.tokenizer


def opener_of(recipe: Recipe, opened: Opened | None) -> Opener:
    """What opens the models of a recipe, whose paths may be meant from its folder; see `resolve`."""
    if opened is None or callable(opened):
        opener = opened or open_model
        return lambda reference: opener(located(reference, recipe.base_dir))
    given = opened

    def look_up(reference: Reference) -> Checkpoint:
        if str(reference) not in given:
            raise RecipeError(
                f"The model {str(reference)!r} of the recipe was not given; given are {', '.join(given)}."
            )
        return given[str(reference)]

    return look_up
