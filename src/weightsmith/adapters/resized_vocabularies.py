"""Adapters that were trained on a base with more rows of its vocabulary, and store the grown table and head whole.

What they store takes the place of the base's tensors, so the result is determined: it has their rows, a configuration
with that number, and the tokenizer that lies beside the adapter.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from weightsmith.adapters.adapter import Form, Update
from weightsmith.checkpoints import Checkpoint, sections, tokenizer_files, vocabulary_size_of
from weightsmith.errors import CompatibilityError
from weightsmith.findings import Finding, Severity
from weightsmith.tensors import Kind, LazyTensor, shown

_TABLES = (Kind.EMBEDDING, Kind.HEAD)


def is_resized(update: Update, base: LazyTensor) -> bool:
    """Whether an update is a whole tensor with another number of rows than the base's, and else the same shape."""
    stored = update.replacement
    if stored is None or update.form is Form.ROWS or not base.shape:
        return False
    return stored.shape != base.shape and stored.shape[1:] == base.shape[1:]


def refuse_resized(update: Update, base: LazyTensor) -> None:
    """Raise CompatibilityError for such a one, where what is asked for is a change of the base's rows."""
    stored = update.replacement
    if stored is not None and is_resized(update, base):
        raise CompatibilityError(
            f"{stored.location} of shape {list(stored.shape)} is to replace {base.location} of shape "
            f"{list(base.shape)}, which is no change of it: its vocabulary was resized before training, so merge it "
            "into its base first, or resize the base's in the same way."
        )


def check_alone(updates: Sequence[tuple[Update, float]], base: LazyTensor) -> None:
    """Raise CompatibilityError where a tensor with other rows is weighted, or is not the only change of its tensor."""
    grown = next((u.replacement for u, _ in updates if is_resized(u, base)), None)
    if grown is not None and (len(updates) > 1 or updates[0][1] != 1.0):
        raise CompatibilityError(
            f"{grown.location} has {grown.shape[0]} rows for the {base.shape[0]} of {base.location}, so rows of new "
            "tokens have nothing that they could be added to or weighted against: apply this adapter alone, with "
            "strength 1."
        )


def with_grown_vocabulary(
    changed: Checkpoint, base: Checkpoint, places: Sequence[Path]
) -> Checkpoint:
    """The base with adapters, `changed`, with configuration and tokenizer for the rows that its tables now have.

    `places` is where the adapters lie. Raises CompatibilityError where a table or head of the
    vocabulary keeps the rows that another has not any more.
    """
    grown = [n for n, t in base.tensors.items() if changed.tensors.get(n, t).shape != t.shape]
    if not grown:
        return changed
    tables = [name for name in grown if base.tensors[name].shape[0] == base.vocab_size]
    odd = next((name for name in grown if name not in tables), None)
    if odd is not None:
        raise CompatibilityError(
            f"The adapter replaces {shown(odd)} of {base.identity}, which has {base.tensors[odd].shape[0]} rows and is "
            f"no table of the vocabulary, by one of {changed.tensors[odd].shape[0]}: give the base that the adapter "
            "was trained on."
        )
    before, after = base.tensors[tables[0]].shape[0], changed.tensors[tables[0]].shape[0]
    for name, place in changed.places.items():
        shape = changed.tensors[name].shape
        if place.kind in _TABLES and shape and shape[0] == before:
            raise CompatibilityError(
                f"The adapter replaces {shown(tables[0])} by one of {after} rows and leaves {shown(name)} with the "
                f"{before} of {base.identity}, so new tokens have no scores or no vectors: give an adapter that stores "
                "both, or a base that is resized already."
            )
    config = copy.deepcopy(changed.config)
    declared = vocabulary_size_of(config)
    for section in () if config is None else sections(config):
        if declared is not None and section.get("vocab_size") == declared:
            section["vocab_size"] = after
    own = next(
        (place for place in reversed(places) if place.is_dir() and tokenizer_files(place)), None
    )
    return replace(
        changed,
        config=config,
        tokenizer_place=own,
        about_files=(*changed.about_files, _finding(base, before, after, own)),
    )


def _finding(base: Checkpoint, before: int, after: int, own: Path | None) -> Finding:
    said = (
        f"An adapter replaces the vocabulary of {before} rows of {base.identity} by one of {after}"
    )
    if own is not None:
        return Finding(
            Severity.NOTE,
            "resized-vocabulary",
            base.identity,
            f"{said}; the tokenizer that lies beside the adapter is taken with it",
        )
    return Finding(
        Severity.WARNING,
        "resized-vocabulary",
        base.identity,
        f"{said}, and no tokenizer lies beside it, so the base's is kept",
        "put the tokenizer that it was trained with beside the adapter",
    )
