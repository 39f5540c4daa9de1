"""What a recipe without a tokenizer section should know of its models' tokenizers: they are copied, not aligned."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from weightsmith.checkpoints import Checkpoint
from weightsmith.errors import CheckpointError
from weightsmith.findings import Finding, Severity
from weightsmith.recipes.resolution.formula import OutputTensor, models_in
from weightsmith.recipes.resolution.inputs import Inputs
from weightsmith.tensors import Kind, shown
from weightsmith.vocabularies import Outcome, VocabularyChange

if TYPE_CHECKING:
    from weightsmith.recipes.language.schema import RecipeDocument
    from weightsmith.recipes.resolution.result import RecipeResult
    from weightsmith.tokenizers import Vocabulary

_TABLES = (Kind.EMBEDDING, Kind.HEAD)


def compare_vocabularies(
    document: RecipeDocument, result: RecipeResult, outputs: Sequence[OutputTensor], inputs: Inputs
) -> Outcome:
    """Findings about tokenizers that differ although their tables fit, and the chat template.

    Raises RecipeError for a `chat_template:` that means nothing.
    """
    config_source = result.config_source.config_label
    mixed = _mixed(outputs)
    labels = [config_source, *(label for label in inputs.checkpoints if label != config_source)]
    statistics = {measured.label for measured in inputs.statistics.values()}
    read: dict[str, Vocabulary] = {}
    checkpoints = {
        label: inputs.checkpoints[label]
        for label in labels
        if label not in statistics and inputs.checkpoints[label].tokenizer_files
    }
    if not checkpoints and document.chat_template is None:
        rows = inputs.checkpoints[config_source].vocab_size or 0
        return Outcome(rows=rows, template=f"that of {config_source!r}")
    # Readers of tokenizers are many, and most small networks have none.
    from weightsmith.tokenizers import Library, resolve_chat_template

    library = Library()
    look = library.outline if library.share_tokens(list(checkpoints.values())) else library.read
    for label, checkpoint in checkpoints.items():
        vocabulary = _read(look, label, checkpoint, inputs)
        if vocabulary is not None:
            read[label] = vocabulary
    own = read.get(config_source)
    order = [read[label] for label in inputs.checkpoints if label in read]
    template, findings = resolve_chat_template(document.chat_template, order, own)
    for finding in [
        *findings,
        *_differing(read, config_source, mixed),
        *_beyond(read, config_source, inputs),
    ]:
        inputs.problems.add(finding)
    tokens = len(own.ids) if own is not None else 0
    return Outcome(
        tokens=tokens,
        rows=inputs.checkpoints[config_source].vocab_size or 0,
        template=f"that of {config_source!r}" if template is None else "replaced by the recipe's",
        read_tokens=library.tokens,
        change=VocabularyChange(old=own, new=own, template=template),
    )


def _read(
    look: Callable[[Checkpoint], Vocabulary | None],
    label: str,
    checkpoint: Checkpoint,
    inputs: Inputs,
) -> Vocabulary | None:
    try:
        return look(checkpoint)
    except CheckpointError as problem:
        inputs.problems.add(
            Finding(
                Severity.NOTE,
                "tokenizer-unread",
                label,
                f"The tokenizer of {label!r} is not looked into: {str(problem).rstrip('.')}",
            )
        )
        return None


def _mixed(outputs: Sequence[OutputTensor]) -> set[frozenset[str]]:
    """The sets of checkpoints whose tables are merged with one another."""
    found = {models_in(item.formula) for item in outputs if item.place.kind in _TABLES}
    return {labels for labels in found if len(labels) > 1}


def _differing(
    read: Mapping[str, Vocabulary], config_source: str, mixed: set[frozenset[str]]
) -> list[Finding]:
    own = read.get(config_source)
    findings = []
    for label, vocabulary in read.items():
        together = any({label, config_source} <= labels for labels in mixed)
        if own is None or label == config_source or not together or vocabulary.ids == own.ids:
            continue
        mine, theirs = own.texts, vocabulary.texts
        ids = sorted(i for i in mine.keys() | theirs.keys() if mine.get(i) != theirs.get(i))
        first = ids[0]
        findings.append(
            Finding(
                Severity.WARNING,
                "tokenizers-differ",
                label,
                f"The tokenizers of {config_source!r} and {label!r} differ in {len(ids)} tokens, the first being "
                f"number {first} ({_token(mine.get(first))} and {_token(theirs.get(first))}), so rows of different "
                "tokens are merged",
                "align them with `tokenizer: {source: union}` or `base`",
            )
        )
    return findings


def _token(text: str | None) -> str:
    return "none" if text is None else shown(text)


def _beyond(read: Mapping[str, Vocabulary], config_source: str, inputs: Inputs) -> list[Finding]:
    own, rows = read.get(config_source), inputs.checkpoints[config_source].vocab_size
    if own is None or rows is None or own.size <= rows:
        return []
    texts = [text for text, index in own.ids.items() if index >= rows]
    return [
        Finding(
            Severity.WARNING,
            "token-without-row",
            config_source,
            f"{len(texts)} tokens of the tokenizer of {config_source!r}, which is copied, lie beyond the {rows} rows "
            f"of its table (the first is {shown(texts[0])}); text that has them cannot be run",
            "leave them out with `tokenizer: {source: base}`, or give them rows with `missing:`",
        )
    ]
