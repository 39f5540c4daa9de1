"""The tensors of a checkpoint that have one row for each token, and which of them correspond between checkpoints."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from weightsmith.checkpoints import Checkpoint, Tying, sections, vocabulary_embedding
from weightsmith.tensors import Kind, LazyTensor, Place
from weightsmith.vocabularies.token_tables import TokenTable


class TableKind(enum.Enum):
    """What a table is for; the value is its name in reports."""

    EMBEDDING = "embedding"
    HEAD = "head"
    BIAS = "bias"


@dataclass(frozen=True, slots=True, eq=False)
class VocabularyTable:
    """One tensor with a row for each token."""

    name: str
    kind: TableKind
    table: TokenTable


def vocabulary_tables(checkpoint: Checkpoint) -> dict[str, VocabularyTable]:
    """The tables of a checkpoint by name: its embeddings, the heads that score the vocabulary, and their biases.

    An embedding counts where it has the rows of the input embedding or of a vocabulary size that the configuration
    declares; so does a head or a bias, which may lie along axis 1 (BART's `final_logits_bias`).
    """
    main = vocabulary_embedding(checkpoint.tensors, checkpoint.places)
    if main is None:
        return {}
    sizes = {checkpoint.tensors[main].shape[0], *_declared(checkpoint)}
    found = {}
    for name, tensor in checkpoint.tensors.items():
        table = _table(name, tensor, checkpoint.places[name], sizes)
        if table is not None:
            found[name] = table
    return found


def _declared(checkpoint: Checkpoint) -> set[int]:
    values = (
        value
        for section in sections(checkpoint.config or {})
        for key, value in section.items()
        if key.startswith("vocab_size")
    )
    return {value for value in values if isinstance(value, int) and not isinstance(value, bool)}


def _table(name: str, tensor: LazyTensor, role: Place, sizes: set[int]) -> VocabularyTable | None:
    shape = tensor.shape
    if role.kind is Kind.EMBEDDING:
        is_table = role.part == "weight" and len(shape) == 2 and shape[0] in sizes
        return VocabularyTable(name, TableKind.EMBEDDING, TokenTable(tensor)) if is_table else None
    if role.kind is not Kind.HEAD or ".transform." in name:
        return None
    if len(shape) == 2 and shape[0] == 1 and shape[1] in sizes:
        return VocabularyTable(name, TableKind.BIAS, TokenTable(tensor, 1))
    if not shape or shape[0] not in sizes or len(shape) > 2:
        return None
    kind = TableKind.BIAS if len(shape) == 1 else TableKind.HEAD
    return VocabularyTable(name, kind, TokenTable(tensor))


def counterpart(
    table: VocabularyTable, tables: Mapping[str, VocabularyTable], *, tied: bool
) -> VocabularyTable | None:
    """The table of another checkpoint that is for the same: of that name, else the first of its kind.

    `tied`: the other's embedding is its head too, and stands for a head that it does not have.
    """
    same = tables.get(table.name)
    if same is not None and same.kind is table.kind:
        return same
    found = next((t for t in tables.values() if t.kind is table.kind), None)
    if found is None and table.kind is TableKind.HEAD and tied:
        found = next((t for t in tables.values() if t.kind is TableKind.EMBEDDING), None)
    return found


def is_tied(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint's embedding is its head too."""
    return checkpoint.tying is Tying.TIED
