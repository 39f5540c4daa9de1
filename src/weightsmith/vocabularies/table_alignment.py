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

from weightsmith.errors import RecipeError
from weightsmith.tensors import LazyTensor
from weightsmith.tokenizers import TargetVocabulary
from weightsmith.vocabularies.aligned_rows import AlignedRows, Fill
from weightsmith.vocabularies.combinations import Copied, borrow
from weightsmith.vocabularies.padding import MeanOfRows
from weightsmith.vocabularies.row_fitting import Fitter, Rules
from weightsmith.vocabularies.token_matching import matched
from weightsmith.vocabularies.token_tables import Index, TokenTable
from weightsmith.vocabularies.tokenized_models import TokenizedModel
from weightsmith.vocabularies.vocabulary_tables import (
    TableKind,
    VocabularyTable,
)

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """What `tokens:` says of one token: a row of a model (None: no source), or zeros; `force`: in all checkpoints."""

    model: TokenizedModel | None
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

    model: TokenizedModel
    tensors: Mapping[str, LazyTensor]
    reports: tuple[TableReport, ...]


@dataclass(eq=False)
class Aligner:
    """Aligns checkpoints, one after the other.

    `models` are in the order of the recipe; `base` is the one whose row goes before a mean, `config_source` the one
    whose configuration the result has, `tokenizer_source` the one whose tokenizer the target is, or grew from.
    `keeps_padding`: rows without a token keep the checkpoint's own padding.
    """

    target: TargetVocabulary
    models: Sequence[TokenizedModel]
    base: TokenizedModel | None
    config_source: TokenizedModel
    tokenizer_source: TokenizedModel | None
    choices: Mapping[str, TokenChoice]
    rules: Rules
    keeps_padding: bool
    _ids: dict[int, Index] = field(default_factory=dict, repr=False)

    def ids(self, model: TokenizedModel) -> Index:
        """The model's id for each id of the target, -1 where it has none."""
        if id(model) not in self._ids:
            self._ids[id(model)] = matched(self.target.vocabulary, model.vocabulary, model.match)
        return self._ids[id(model)]

    def rows_in(self, model: TokenizedModel, table: TokenTable, rows: int) -> Index:
        """The row of a model's table for each of the first `rows` target rows, -1 where it has none."""
        ids = self.ids(model)
        found = np.full(rows, -1, np.int64)
        count = min(rows, len(ids))
        found[:count] = np.where(ids[:count] < table.count, ids[:count], -1)
        return found

    def donors_of(self, model: TokenizedModel) -> list[TokenizedModel]:
        """Where tokens that it lacks are taken from: the tokenizer's source, then the order of the recipe."""
        first = [] if self.tokenizer_source is None else [self.tokenizer_source]
        every = [*first, *(p for p in self.models if p.is_merged)]
        return list({id(one): one for one in every if one is not model}.values())

    def align(self, model: TokenizedModel) -> Aligned:
        """The model's tables in the target's order."""
        tensors: dict[str, LazyTensor] = {}
        reports = []
        for table in model.tables.values():
            made, report = self._table(model, table)
            reports.append(report)
            if made is not None:
                tensors[table.name] = made
        return Aligned(model, tensors, tuple(reports))

    def _rows(self, table: VocabularyTable) -> int:
        """Rows of the result's table: what the config_source's has more or less than its embedding stays so."""
        main = self.config_source.checkpoint.vocab_size
        own = self.config_source.counterpart(table)
        extra = 0 if own is None or main is None else own.count - main
        return self.target.rows + extra

    def _table(
        self, model: TokenizedModel, table: VocabularyTable
    ) -> tuple[AlignedRows | None, TableReport]:
        rows = self._rows(table)
        has_token = self._has_token(rows)
        available = self.rows_in(model, table.table, rows)
        own = available.copy()
        forced = [index for index, choice in self.chosen(rows) if choice.force]
        own[forced] = -1
        self._keep_padding(model, table.table, has_token, own)
        work = _Work(self, model, table, own, has_token)
        fills, counts = work.fills()
        padding = np.flatnonzero(~has_token & (own < 0))
        aligned = AlignedRows(table.table.tensor, own, fills, table.table.axis)
        if padding.size:
            mean = MeanOfRows(aligned, np.flatnonzero(has_token), len(padding))
            fills = (*fills, Fill(padding, mean))
            aligned = AlignedRows(table.table.tensor, own, fills, table.table.axis)
        report = self._report(model, table, own, has_token, counts)
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
        self,
        model: TokenizedModel,
        table: VocabularyTable,
        own: Index,
        has_token: Mask,
        counts: _Counts,
    ) -> TableReport:
        present = (own >= 0) & has_token
        in_place = int((present & (own == np.arange(len(own)))).sum())
        taken = np.zeros(table.table.count, bool)
        available = self.rows_in(model, table.table, len(own))
        taken[available[available >= 0]] = True
        ids = np.fromiter(model.vocabulary.ids.values(), np.int64)
        texts = self.target.vocabulary.texts
        is_bias = table.kind is TableKind.BIAS
        return TableReport(
            checkpoint=model.label,
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
        model: TokenizedModel,
        table: TokenTable,
        has_token: Mask,
        own: Index,
    ) -> None:
        """Rows of no token in both vocabularies stay what they are."""
        if not self.keeps_padding:
            return
        free = np.flatnonzero(~has_token)
        free = free[free < table.count]
        taken = np.fromiter(model.vocabulary.ids.values(), np.int64)
        free = free[~np.isin(free, taken)]
        own[free] = free


@dataclass(frozen=True, slots=True, eq=False)
class _Work:
    """The rows of one table that its checkpoint does not have."""

    aligner: Aligner
    model: TokenizedModel
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
                fitter = Fitter(
                    self.aligner.target.vocabulary,
                    self.aligner.donors_of(self.model),
                    self.aligner.rows_in,
                    self.model,
                    self.table,
                    self.own,
                    rule,
                )
                for name, fill in fitter.fills(missing):
                    fills.append(fill)
                    counts.rules[name] = counts.rules.get(name, 0) + len(fill.targets)
        return tuple(fills), counts

    def _named(self, wanted: Mask, counts: _Counts) -> list[Fill]:
        """Rows that `tokens:` names; they are taken out of `wanted`."""
        by_model: dict[int, tuple[TokenizedModel, list[int], list[int]]] = {}
        for index, choice in self.aligner.chosen(len(self.own)):
            if not wanted[index] or (choice.model is None and not choice.is_zero):
                continue
            wanted[index] = False
            if choice.model is None:
                counts.zero += 1
                continue
            _, targets, rows = by_model.setdefault(id(choice.model), (choice.model, [], []))
            targets.append(index)
            rows.append(choice.row)
        fills = []
        for model, targets, rows in by_model.values():
            source = model.counterpart(self.table)
            if source is None:
                counts.zero += len(targets)
                continue
            self._require_row(model, source, rows)
            counts.chosen += len(targets)
            fills.append(Fill(np.array(targets), Copied(source, np.array(rows))))
        return fills

    def _require_row(self, model: TokenizedModel, source: TokenTable, rows: Sequence[int]) -> None:
        beyond = next((row for row in rows if row >= source.count), None)
        if beyond is not None:
            raise RecipeError(
                f"tokenizer.tokens: row {beyond} is asked for, but {source.tensor.location} of {model.label!r} has "
                f"{source.count} rows; name another token."
            )

    def _borrowed(self, missing: Index, counts: _Counts) -> list[Fill]:
        tables: list[TokenTable] = []
        rows: list[Index] = []
        base = None
        for model in self.aligner.models:
            source = model.counterpart(self.table) if model.is_merged else None
            if source is None or source.width != self.table.table.width:
                continue
            if model is self.aligner.base:
                base = len(tables)
            tables.append(source)
            rows.append(self.aligner.rows_in(model, source, len(self.own))[missing])
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
