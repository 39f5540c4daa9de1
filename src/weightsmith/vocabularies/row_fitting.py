"""Rows of missing tokens by a rule: what it is given, and which checkpoint is the donor of which token."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from weightsmith.tokenizers import Vocabulary
from weightsmith.vocabularies.aligned_rows import Fill
from weightsmith.vocabularies.missing import Missing, MissingRule, Pieces
from weightsmith.vocabularies.rules import FittedRows, Subtokens
from weightsmith.vocabularies.token_matching import pieces_of, pieces_without
from weightsmith.vocabularies.token_tables import Index, TokenTable
from weightsmith.vocabularies.tokenized_models import TokenizedModel
from weightsmith.vocabularies.vocabulary_tables import TableKind, VocabularyTable

# Shared tokens that are cut into pieces to measure `subtokens`.
_MEASURED = 1500


@dataclass(frozen=True, slots=True)
class Rules:
    """The rule for missing rows of each kind of table; None stands for borrowing, mergekit's."""

    embedding: MissingRule | None = None
    head: MissingRule | None = None
    bias: MissingRule | None = None

    def of(self, kind: TableKind) -> MissingRule | None:
        """The rule for a table."""
        return {
            TableKind.EMBEDDING: self.embedding,
            TableKind.HEAD: self.head,
            TableKind.BIAS: self.bias,
        }[kind]


@dataclass(frozen=True, slots=True, eq=False)
class Fitter:
    """Applies a rule to one table; `own` has the own row of each target row, -1 where it is missing.

    `target` is the vocabulary that tables are brought to, `donors` are asked for tokens in their order, and `rows_in`
    gives the row of a donor's table for each target row, -1 where it has none.
    """

    target: Vocabulary
    donors: Sequence[TokenizedModel]
    rows_in: Callable[[TokenizedModel, TokenTable, int], Index]
    model: TokenizedModel
    table: VocabularyTable
    own: Index
    rule: MissingRule

    def fills(self, missing: Index) -> Iterator[tuple[str, Fill]]:
        """The name of a rule and the rows that it makes; a token that no donor has is made from its pieces."""
        if not self.rule.needs_donor:
            yield self.rule.name, self._alone(self.rule, missing)
            return
        left = missing
        for donor in self.donors:
            source = donor.counterpart(self.table)
            if source is None or not left.size:
                continue
            rows = self.rows_in(donor, source, len(self.own))
            has = rows[left] >= 0
            if has.any():
                yield self.rule.name, self._from(donor, source, rows, left[has])
            left = left[~has]
        if left.size:
            yield Subtokens.name, self._alone(Subtokens(), left)

    def _from(self, donor: TokenizedModel, source: TokenTable, rows: Index, missing: Index) -> Fill:
        shared = np.flatnonzero((self.own >= 0) & (rows >= 0))
        facts = Missing(
            own=self.table.table,
            count=len(missing),
            used=self._used(),
            donor=source,
            shared_own=self.own[shared],
            shared_donor=rows[shared],
            wanted=rows[missing],
            is_head=self.table.kind is TableKind.HEAD,
            own_label=repr(self.model.label),
            donor_label=repr(donor.label),
        )
        return Fill(missing, FittedRows(self.rule, facts))

    def _alone(self, rule: MissingRule, missing: Index) -> Fill:
        is_cut = isinstance(rule, Subtokens)
        shared = np.flatnonzero(self.own >= 0)
        shared = shared[shared < self.target.size]
        facts = Missing(
            own=self.table.table,
            count=len(missing),
            used=self._used(),
            shared_own=self.own[shared] if is_cut else None,
            pieces=self._pieces(missing) if is_cut else None,
            shared_pieces=self._shared_pieces(shared) if is_cut else None,
            is_head=self.table.kind is TableKind.HEAD,
            own_label=repr(self.model.label),
        )
        return Fill(missing, FittedRows(rule, facts))

    def _used(self) -> Index:
        ids = np.fromiter(self.model.vocabulary.ids.values(), np.int64)
        used: Index = ids[ids < self.table.table.count]
        return used

    def _pieces(self, missing: Index) -> Pieces:
        target, own = self.target, self.model.vocabulary
        return pieces_of(target, missing.tolist(), own, self.table.table.count)

    def _shared_pieces(self, shared: Index) -> Pieces:
        step = -(-len(shared) // _MEASURED) or 1
        chosen = np.zeros(len(shared), bool)
        chosen[::step] = True
        texts = self.model.vocabulary.texts
        count = self.table.table.count
        ids = [i for i in self.own[shared[chosen]].tolist() if i in texts]
        cut = dict(zip(ids, _lists(pieces_without(self.model.vocabulary, ids, count)), strict=True))
        rows = self.own[shared].tolist()
        lists = [
            cut.get(row, []) if is_one else [] for row, is_one in zip(rows, chosen, strict=True)
        ]
        return Pieces.of(lists)


def _lists(pieces: Pieces) -> list[list[int]]:
    starts, rows = pieces.starts.tolist(), pieces.rows.tolist()
    return [rows[a:b] for a, b in itertools.pairwise(starts)]
