"""Resolution: a recipe and the headers of its checkpoints give the formula of every output tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from weightsmith.adapters import located, open_model, parse_reference
from weightsmith.checkpoints import Checkpoint
from weightsmith.errors import RecipeError
from weightsmith.findings import Finding
from weightsmith.graph import EqualMagnitudes
from weightsmith.recipes.language.dialect import with_native_keys
from weightsmith.recipes.language.recipe import Recipe
from weightsmith.recipes.language.schema import RecipeDocument
from weightsmith.recipes.language.vocabulary_sections import Tokenizer
from weightsmith.recipes.resolution.boundary_findings import seam_findings
from weightsmith.recipes.resolution.formula import OutputTensor, Resolved, merges_in
from weightsmith.recipes.resolution.inputs import Inputs
from weightsmith.recipes.resolution.merging import Resolver
from weightsmith.recipes.resolution.postprocess import assertions, tied_outputs
from weightsmith.recipes.resolution.views import View
from weightsmith.recipes.resolution.vocabulary_comparison import compare_vocabularies
from weightsmith.tensors import parse_size

Opener = Mapping[str, Checkpoint] | Callable[[str], Checkpoint]

_DEFAULT_SHARD = 5 * 10**9


def resolve(recipe: Recipe, opened: Opener | None = None) -> Resolved:
    """Answer every question of a recipe from headers and configurations; no tensor data is read.

    `opened` gives the checkpoint for a model as the recipe writes it (`PATH`, `PATH@REVISION`, `BASE+ADAPTER`): a
    mapping, a function, or None to open them here. What does not fit together is gathered in `findings`, all of it at
    once. Raises RecipeError where the recipe means nothing for any checkpoints, and CheckpointError where one
    cannot be opened.
    """
    document = recipe.document
    inputs = Inputs(opener_of(recipe, opened), unties=bool(document.untie))
    resolver = Resolver(inputs)
    section = _tokenizer_section(document)
    vocabulary = None
    if section is not None:
        # Most recipes have none, and the aligning of vocabularies is a third of what reads recipes.
        from weightsmith.recipes.resolution.tokenizers import align_checkpoints

        vocabulary = align_checkpoints(document, section, inputs, recipe.semantics)
    result = resolver.result(document, inherited="paper", scope="merge")
    outputs = tied_outputs(result)
    if vocabulary is None:
        vocabulary = compare_vocabularies(document, result, outputs, inputs)
    checks = assertions(document, resolver.view, result, outputs)
    measured = _measured_only(outputs, inputs.recipe_views)
    return Resolved(
        outputs=tuple(outputs),
        checkpoints=dict(inputs.checkpoints),
        donor=inputs.label_of(result.donor),
        base=inputs.label_of(result.base) if result.base is not None else None,
        layer_sources=result.layer_sources,
        findings=(
            *recipe.findings,
            *_worded(inputs.problems.findings(), recipe.semantics),
            *seam_findings(outputs, inputs.checkpoints),
        ),
        assertions=checks,
        seed=document.seed or 0,
        shard_bytes=shard_bytes(document.shard_size),
        nonfinite=document.nonfinite or "error",
        recipe=recipe,
        out_dtype=result.output_dtype,
        stack=result.stack,
        statistics=tuple(measured.label for measured in inputs.statistics.values()),
        vocabulary=vocabulary,
        measured=measured,
        equal_magnitudes=EqualMagnitudes(document.equal_magnitudes or "hash"),
    )


def _measured_only(
    outputs: Sequence[OutputTensor], inner: Sequence[View]
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


def opener_of(recipe: Recipe, opened: Opener | None) -> Callable[[str], Checkpoint]:
    """What opens the models of a recipe, whose paths may be meant from its folder; see `resolve`."""
    opened = open_model if opened is None else opened
    if callable(opened):
        opener, base_dir = opened, recipe.base_dir
        if base_dir is None:
            return opener
        return lambda reference: opener(
            str(located(parse_reference(reference, base_dir), base_dir))
        )
    given = opened

    def look_up(reference: str) -> Checkpoint:
        if reference not in given:
            raise RecipeError(
                f"The model {reference!r} of the recipe was not given; given are {', '.join(given)}."
            )
        return given[reference]

    return look_up
