"""The tables of checkpoints brought into the order of a target vocabulary.

A row of an aligned table is, for the token of that row,

    the checkpoint's own row, where it has the token and the token is not forced;
    else the row that the recipe names under `tokens:`;
    else what the rule for missing rows makes.

`borrow` is mergekit's rule: the row of the only merged checkpoint that has the token; of the base; else the mean over
those that have it; else zeros. Rows that belong to no token are the checkpoint's own padding, else the mean row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from weightsmith.checkpoints.checkpoint import Checkpoint
from weightsmith.errors import RecipeError
from weightsmith.tensors.stored import LazyTensor
from weightsmith.tokenizers.target import TargetVocabulary
from weightsmith.tokenizers.vocabulary import Vocabulary
from weightsmith.vocabularies.aligned_rows import AlignedRows, Fill
from weightsmith.vocabularies.combinations import Copied, borrow
from weightsmith.vocabularies.padding import MeanOfRows
from weightsmith.vocabularies.row_fitting import Fitter, Rules
from weightsmith.vocabularies.token_matching import matched
from weightsmith.vocabularies.token_tables import Index, TokenTable
from weightsmith.vocabularies.vocabulary_tables import (
    TableKind,
    VocabularyTable,
    counterpart,
    is_tied,
    vocabulary_tables,
)

Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Party:
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
    ) -> Party:
        """A checkpoint with the tables that it has."""
        tables = vocabulary_tables(checkpoint)
        return cls(label, checkpoint, vocabulary, merged, match, tables)

    def counterpart(self, table: VocabularyTable) -> TokenTable | None:
        """The table of this checkpoint for the same purpose, if its rows are as long."""
        found = counterpart(table, self.tables, tied=is_tied(self.checkpoint))
        return None if found is None else found.table


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """What `tokens:` says of one token: a row of a party (None: no source), or zeros; `force`: in all checkpoints."""

    party: Party | None
    row: int = -1
    is_zero: bool = False
    force: bool = False


@dataclass(frozen=True, slots=True)
class TableReport:
    """What becomes of one table: numbers of rows, and the fits that are to be measured.

    `rules` counts computed rows by rule; `dropped` are own rows of tokens that the target lacks.
    """

    checkpoint: str
    tensor: str
    kind: str
    rows: int
    in_place: int
    moved: int
    borrowed: int
    chosen: int
    zero: int
    padding: int
    dropped: int
    rules: Mapping[str, int]
    unresolved: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Aligned:
    """A checkpoint whose tables have the target's rows; those that need no change are the stored ones."""

    party: Party
    tensors: Mapping[str, LazyTensor]
    reports: tuple[TableReport, ...]


@dataclass(eq=False)
class Aligner:
    """Aligns checkpoints, one after the other.

    `parties` are in the order of the recipe; `base` is the one whose row goes before a mean, `frame` the one whose
    configuration the result has, `owner` the one whose tokenizer the target is, or grew from. `keeps_padding`: rows
    without a token keep the checkpoint's own padding.
    """

    target: TargetVocabulary
    parties: Sequence[Party]
    base: Party | None
    frame: Party
    owner: Party | None
    choices: Mapping[str, TokenChoice]
    rules: Rules
    keeps_padding: bool
    _ids: dict[int, Index] = field(default_factory=dict, repr=False)

    def ids(self, party: Party) -> Index:
        """The party's id for each id of the target, -1 where it has none."""
        if id(party) not in self._ids:
            self._ids[id(party)] = matched(self.target.vocabulary, party.vocabulary, party.match)
        return self._ids[id(party)]

    def rows_in(self, party: Party, table: TokenTable, rows: int) -> Index:
        """The row of a party's table for each of the first `rows` target rows, -1 where it has none."""
        ids = self.ids(party)
        found = np.full(rows, -1, np.int64)
        count = min(rows, len(ids))
        found[:count] = np.where(ids[:count] < table.count, ids[:count], -1)
        return found

    def align(self, party: Party) -> Aligned:
        """The party's tables in the target's order."""
        tensors: dict[str, LazyTensor] = {}
        reports = []
        for table in party.tables.values():
            made, report = self._table(party, table)
            reports.append(report)
            if made is not None:
                tensors[table.name] = made
        return Aligned(party, tensors, tuple(reports))

    def _rows(self, table: VocabularyTable) -> int:
        """Rows of the result's table: what the frame's has more or less than its embedding stays so."""
        main = self.frame.checkpoint.vocab_size
        own = self.frame.counterpart(table)
        extra = 0 if own is None or main is None else own.count - main
        return self.target.rows + extra

    def _table(
        self, party: Party, table: VocabularyTable
    ) -> tuple[AlignedRows | None, TableReport]:
        rows = self._rows(table)
        has_token = self._has_token(rows)
        available = self.rows_in(party, table.table, rows)
        own = available.copy()
        forced = [index for index, choice in self.chosen(rows) if choice.force]
        own[forced] = -1
        self._keep_padding(party, table.table, has_token, own)
        work = _Work(self, party, table, own, has_token)
        fills, counts = work.fills()
        padding = np.flatnonzero(~has_token & (own < 0))
        aligned = AlignedRows(table.table.tensor, own, fills, table.table.axis)
        if padding.size:
            mean = MeanOfRows(aligned, np.flatnonzero(has_token), len(padding))
            fills = (*fills, Fill(padding, mean))
            aligned = AlignedRows(table.table.tensor, own, fills, table.table.axis)
        report = self._report(party, table, own, has_token, counts)
        is_same = aligned.is_unchanged and not any(fill.rows.count for fill in fills)
        return (None if is_same else aligned), report

    def _has_token(self, rows: int) -> Mask:
        found = np.zeros(rows, bool)
        ids = np.fromiter(self.target.vocabulary.ids.values(), np.int64)
        found[ids[ids < rows]] = True
        return found

    def chosen(self, rows: int) -> list[tuple[int, TokenChoice]]:
        """The choices of the recipe by target row, ascending."""
        ids = self.target.vocabulary.ids
        found = [(ids[text], choice) for text, choice in self.choices.items()]
        return sorted((one for one in found if one[0] < rows), key=lambda one: one[0])

    def _report(
        self, party: Party, table: VocabularyTable, own: Index, has_token: Mask, counts: _Counts
    ) -> TableReport:
        present = (own >= 0) & has_token
        in_place = int((present & (own == np.arange(len(own)))).sum())
        taken = np.zeros(table.table.count, bool)
        available = self.rows_in(party, table.table, len(own))
        taken[available[available >= 0]] = True
        ids = np.fromiter(party.vocabulary.ids.values(), np.int64)
        texts = self.target.vocabulary.texts
        is_bias = table.kind is TableKind.BIAS
        return TableReport(
            checkpoint=party.label,
            tensor=table.name,
            kind=table.kind.value,
            rows=len(own),
            in_place=in_place,
            moved=int(present.sum()) - in_place,
            borrowed=counts.borrowed,
            chosen=counts.chosen,
            zero=counts.zero + counts.rules.get("zero", 0),
            padding=int((~has_token).sum()),
            dropped=int((~taken[ids[ids < table.table.count]]).sum()),
            rules={name: count for name, count in counts.rules.items() if name != "zero"},
            unresolved=() if is_bias else tuple(texts[row] for row in counts.unresolved),
        )

    def _keep_padding(
        self,
        party: Party,
        table: TokenTable,
        has_token: Mask,
        own: Index,
    ) -> None:
        """Rows of no token in both vocabularies stay what they are."""
        if not self.keeps_padding:
            return
        free = np.flatnonzero(~has_token)
        free = free[free < table.count]
        taken = np.fromiter(party.vocabulary.ids.values(), np.int64)
        free = free[~np.isin(free, taken)]
        own[free] = free


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """The rows of one table that its checkpoint does not have."""

    aligner: Aligner
    party: Party
    table: VocabularyTable
    own: Index
    has_token: Mask

    def fills(self) -> tuple[tuple[Fill, ...], _Counts]:
        """Rows from elsewhere, and how many of which."""
        counts = _Counts()
        wanted = self.has_token & (self.own < 0)
        fills = self._named(wanted, counts)
        missing = np.flatnonzero(wanted)
        if missing.size:
            rule = self.aligner.rules.of(self.table.kind)
            if rule is None:
                fills += self._borrowed(missing, counts)
            else:
                fitter = Fitter(self.aligner, self.party, self.table, self.own, rule)
                for name, fill in fitter.fills(missing):
                    fills.append(fill)
                    counts.rules[name] = counts.rules.get(name, 0) + len(fill.targets)
        return tuple(fills), counts

    def _named(self, wanted: Mask, counts: _Counts) -> list[Fill]:
        """Rows that `tokens:` names; they are taken out of `wanted`."""
        by_party: dict[int, tuple[Party, list[int], list[int]]] = {}
        for index, choice in self.aligner.chosen(len(self.own)):
            if not wanted[index] or (choice.party is None and not choice.is_zero):
                continue
            wanted[index] = False
            if choice.party is None:
                counts.zero += 1
                continue
            _, targets, rows = by_party.setdefault(id(choice.party), (choice.party, [], []))
            targets.append(index)
            rows.append(choice.row)
        fills = []
        for party, targets, rows in by_party.values():
            source = party.counterpart(self.table)
            if source is None:
                counts.zero += len(targets)
                continue
            self._require_row(party, source, rows)
            counts.chosen += len(targets)
            fills.append(Fill(np.array(targets), Copied(source, np.array(rows))))
        return fills

    def _require_row(self, party: Party, source: TokenTable, rows: Sequence[int]) -> None:
        beyond = next((row for row in rows if row >= source.count), None)
        if beyond is not None:
            raise RecipeError(
                f"tokenizer.tokens: row {beyond} is asked for, but {source.tensor.location} of {party.label!r} has "
                f"{source.count} rows; name another token."
            )

    def _borrowed(self, missing: Index, counts: _Counts) -> list[Fill]:
        tables: list[TokenTable] = []
        rows: list[Index] = []
        base = None
        for party in self.aligner.parties:
            source = party.counterpart(self.table) if party.is_merged else None
            if source is None or source.width != self.table.table.width:
                continue
            if party is self.aligner.base:
                base = len(tables)
            tables.append(source)
            rows.append(self.aligner.rows_in(party, source, len(self.own))[missing])
        if not tables:
            counts.add_unresolved(missing)
            return []
        index = np.stack(rows)
        counts.add_unresolved(missing[(index < 0).all(axis=0)])
        fills = list(borrow(missing, tables, index, base))
        counts.borrowed += sum(len(fill.targets) for fill in fills)
        return fills


@dataclass(slots=True)
class _Counts:
    chosen: int = 0
    borrowed: int = 0
    zero: int = 0
    rules: dict[str, int] = field(default_factory=dict)
    unresolved: list[int] = field(default_factory=list)

    def add_unresolved(self, rows: Index) -> None:
        """Rows that nobody has stay zero."""
        self.zero += len(rows)
        self.unresolved += rows.tolist()
