"""Rows taken from tables: copies, constants, sparse combinations, and the rows of other checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.errors import CompatibilityError, UsageError
from weightsmith.tensors import WORDS, DType
from weightsmith.vocabularies.aligned_rows import Fill
from weightsmith.vocabularies.token_tables import (
    Identity,
    Index,
    TokenTable,
    Words,
    array_digest,
    as_index,
)

# Elements of rows that are combined at a time.
_AT_A_TIME = 1 << 18


@dataclass(frozen=True, slots=True, eq=False)
class Copied:
    """Row i is row `rows[i]` of `table`, bit for bit."""

    table: TokenTable
    rows: Index

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", as_index(self.rows))
        self.table.require_rows(self.rows)
        if (self.rows < 0).any():
            raise UsageError(f"{self.table.tensor.location} has no row -1 to copy.")

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.rows)

    @property
    def width(self) -> int:
        """Elements of a row."""
        return self.table.width

    @property
    def dtype(self) -> DType:
        """The table's dtype."""
        return self.table.dtype

    @property
    def tables(self) -> tuple[TokenTable, ...]:
        """The one table."""
        return (self.table,)

    @property
    def identity(self) -> Identity:
        """Table and index."""
        return ("copied", self.table.identity, array_digest(self.rows))

    def prepare(self) -> None:
        """Nothing to do."""

    def read(self, which: Index) -> Words:
        """The rows as stored."""
        return self.table.read(self.rows[which])


@dataclass(frozen=True, slots=True, eq=False)
class CombinedRows:
    """Row i is the sum of coefficients[j] * tables[origins[j]][rows[j]] over starts[i] <= j < starts[i + 1].

    Compressed sparse rows: `starts` (M + 1,), `rows` and `coefficients` (float64) of one length, `origins` of that
    length too or None for a single table. Sums are float64 in the order of j and rounded once, to float32 (float64
    if a table is float64), so that they do not depend on which rows are read together. A row with no terms is
    `default`, zero where there is none.
    """

    tables: tuple[TokenTable, ...]
    starts: Index
    rows: Index
    coefficients: NDArray[np.float64]
    origins: NDArray[np.int16] | None = None
    default: NDArray[Any] | None = None
    width: int = field(init=False)

    def __post_init__(self) -> None:
        widths = {table.width for table in self.tables}
        if len(widths) != 1:
            raise CompatibilityError(
                f"{self.tables[0].tensor.location}: tables with rows of {sorted(widths)} elements cannot be combined: "
                "the models have different hidden sizes, choose a rule that fits rows to each other."
            )
        object.__setattr__(self, "width", widths.pop())
        for name in ("starts", "rows"):
            object.__setattr__(self, name, as_index(getattr(self, name)))
        steps = np.diff(self.starts)
        ends_fit = len(self.starts) and self.starts[0] == 0 and self.starts[-1] == len(self.rows)
        if not ends_fit or (steps < 0).any() or len(self.coefficients) != len(self.rows):
            raise UsageError(
                "the starts, rows and coefficients of combinations do not fit together."
            )
        if (self.rows < 0).any():
            raise UsageError("a combination names row -1.")
        for number, table in enumerate(self.tables):
            mine = self.rows if self.origins is None else self.rows[self.origins == number]
            table.require_rows(mine)

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.starts) - 1

    @property
    def dtype(self) -> DType:
        """float32, or float64 if a table is float64."""
        is_wide = any(table.dtype is DType.FLOAT64 for table in self.tables)
        return DType.FLOAT64 if is_wide else DType.FLOAT32

    @property
    def identity(self) -> Identity:
        """Tables, indices and coefficients."""
        arrays = [self.starts, self.rows, self.coefficients]
        digests = [
            None if array is None else array_digest(array)
            for array in (*arrays, self.origins, self.default)
        ]
        return ("combined", tuple(table.identity for table in self.tables), *digests)

    def prepare(self) -> None:
        """Nothing to do."""

    def read(self, which: Index) -> Words:
        """The combinations, as the words of `dtype`."""
        number = "<f8" if self.dtype is DType.FLOAT64 else "<f4"
        out = np.empty((len(which), self.width), number)
        lengths = self.starts[which + 1] - self.starts[which]
        for low, high in _batches(lengths, max(1, _AT_A_TIME // max(self.width, 1))):
            out[low:high] = self._sums(which[low:high], lengths[low:high])
        if self.default is not None:
            out[lengths == 0] = self.default
        return out.view("<u8" if self.dtype is DType.FLOAT64 else "<u4")

    def _sums(self, which: Index, lengths: Index) -> NDArray[np.float64]:
        sums = np.zeros((len(which), self.width))
        if not lengths.any():
            return sums
        # Term after term, for all rows that still have one: every row adds in its own order.
        owners = np.repeat(np.arange(len(which)), lengths)
        ordinals = np.arange(len(owners)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        terms = np.repeat(self.starts[which], lengths) + ordinals
        distinct, numbers = self._distinct(terms)
        for ordinal in range(int(lengths.max())):
            chosen = ordinals == ordinal
            factors = self.coefficients[terms[chosen], None]
            sums[owners[chosen]] += factors * numbers[distinct[chosen]]
        return sums

    def _distinct(self, terms: Index) -> tuple[Index, NDArray[Any]]:
        """Each row of a table once: (which of them a term takes, the numbers)."""
        rows = self.rows[terms]
        if self.origins is None:
            needed, inverse = np.unique(rows, return_inverse=True)
            return inverse, self.tables[0].numbers(needed)
        origins = self.origins[terms].astype(np.int64)
        keys, inverse = np.unique(np.stack([origins, rows]), axis=1, return_inverse=True)
        numbers = np.empty((keys.shape[1], self.width))
        for number, table in enumerate(self.tables):
            chosen = keys[0] == number
            if chosen.any():
                numbers[chosen] = table.numbers(keys[1, chosen])
        return inverse.reshape(-1), numbers


def _batches(lengths: Index, terms: int) -> list[tuple[int, int]]:
    """Ranges of rows with about `terms` terms or rows each, at the least one row."""
    weights = np.cumsum(np.maximum(lengths, 1))
    cuts = np.flatnonzero(np.diff((weights - 1) // terms)) + 1
    return list(zip([0, *cuts.tolist()], [*cuts.tolist(), len(lengths)], strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class Zeros:
    """`count` rows of zeros in the width and dtype of `like`."""

    like: TokenTable
    count: int
    tables: tuple[TokenTable, ...] = ()

    @property
    def width(self) -> int:
        """Elements of a row."""
        return self.like.width

    @property
    def dtype(self) -> DType:
        """The dtype of `like`."""
        return self.like.dtype

    @property
    def identity(self) -> Identity:
        """Their number."""
        return ("zeros", self.count)

    def prepare(self) -> None:
        """Nothing to do."""

    def read(self, which: Index) -> Words:
        """Zeros."""
        return np.zeros((len(which), self.width), WORDS[self.dtype.itemsize])


@dataclass(frozen=True, slots=True, eq=False)
class ConstantRow:
    """Every one of `count` rows is the same `row`, of float32 or float64 (width,)."""

    row: NDArray[Any]
    count: int
    tables: tuple[TokenTable, ...] = ()

    @property
    def width(self) -> int:
        """Elements of a row."""
        return len(self.row)

    @property
    def dtype(self) -> DType:
        """float32 or float64."""
        return DType.FLOAT64 if self.row.dtype.itemsize == 8 else DType.FLOAT32

    @property
    def identity(self) -> Identity:
        """The row itself."""
        return ("constant", self.count, str(self.dtype), array_digest(self.row))

    def prepare(self) -> None:
        """Nothing to do."""

    def read(self, which: Index) -> Words:
        """The row, once for each of `which`."""
        words = self.row.view("<u8" if self.row.dtype.itemsize == 8 else "<u4")
        return np.broadcast_to(words, (len(which), self.width))


def borrow(
    targets: Index,
    tables: Sequence[TokenTable],
    rows: NDArray[np.int64],
    base: int | None = None,
) -> tuple[Fill, ...]:
    """Rows that other checkpoints have for the target rows `targets`: mergekit's default for a missing token.

    `rows` (len(tables), M) has the row of each table that is the token's, -1 where that checkpoint has none. A token
    that exactly one table has gets that row; one that `base` (a position in `tables`) has gets the base's; any other
    gets the mean over the tables that have it, in their order. One that no table has is in no fill, and so is zero.
    Copies keep their dtype; means are float32.
    """
    index = np.asarray(rows, np.int64).reshape(len(tables), -1)
    targets = as_index(targets)
    holders = (index >= 0).sum(axis=0)
    chosen = np.where(holders == 1, (index >= 0).argmax(axis=0), -1) if len(tables) else holders - 1
    if base is not None:
        chosen = np.where(index[base] >= 0, base, chosen)
    fills = []
    for number, table in enumerate(tables):
        mine = np.flatnonzero((chosen == number) & (holders > 0))
        if mine.size:
            fills.append(Fill(targets[mine], Copied(table, index[number, mine])))
    shared = np.flatnonzero((holders > 1) & (chosen < 0))
    if shared.size:
        fills.append(Fill(targets[shared], mean_over(tables, index[:, shared])))
    return tuple(fills)


def mean_over(tables: Sequence[TokenTable], rows: NDArray[np.int64]) -> CombinedRows:
    """Row i is the mean of the rows `rows[:, i]` of the tables, over those that are not -1; (len(tables), M)."""
    index = np.asarray(rows, np.int64).reshape(len(tables), -1)
    has = index.T >= 0
    holders = has.sum(axis=1)
    starts = np.append(0, np.cumsum(holders))
    _, origins = np.nonzero(has)
    coefficients = np.repeat(1.0 / np.maximum(holders, 1), holders)
    return CombinedRows(tuple(tables), starts, index.T[has], coefficients, origins.astype(np.int16))
