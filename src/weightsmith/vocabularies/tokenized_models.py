"""Checkpoints with their vocabularies, and the tables that they have for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from weightsmith.checkpoints import Checkpoint
from weightsmith.tokenizers import Vocabulary
from weightsmith.vocabularies.token_tables import TokenTable
from weightsmith.vocabularies.vocabulary_tables import (
    VocabularyTable,
    counterpart,
    is_tied,
    vocabulary_tables,
)


@dataclass(frozen=True, eq=False)
class TokenizedModel:
    """One checkpoint with its vocabulary; only merged ones lend rows to others by themselves.

    `match` is how its tokens are found in the target (`exact`, `bytes`).
    """

    label: str
    checkpoint: Checkpoint
    vocabulary: Vocabulary
    is_merged: bool
    match: str
    tables: Mapping[str, VocabularyTable]

    @classmethod
    def of(
        cls, label: str, checkpoint: Checkpoint, vocabulary: Vocabulary, *, merged: bool, match: str
    ) -> TokenizedModel:
        """A checkpoint with the tables that it has."""
        tables = vocabulary_tables(checkpoint)
        return cls(label, checkpoint, vocabulary, merged, match, tables)

    def counterpart(self, table: VocabularyTable) -> TokenTable | None:
        """The table of this checkpoint for the same purpose, if its rows are as long."""
        found = counterpart(table, self.tables, tied=is_tied(self.checkpoint))
        return None if found is None else found.table
