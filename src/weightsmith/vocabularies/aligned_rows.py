"""Tables in the order of another vocabulary: rows moved, left zero, borrowed or computed, as they are read."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from weightsmith.errors import CompatibilityError, UsageError
from weightsmith.tensors import WORDS, DType, LazyTensor, ReadingCost, Shaped, promote, widen
from weightsmith.vocabularies.token_tables import (
    Identity,
    Index,
    TokenTable,
    Words,
    array_digest,
    as_index,
)

_WIDENED_BYTES = 1 << 20
_OWN = 0


class Filling(Protocol):
    """Rows that come from somewhere else than the table itself, numbered 0, 1, ... `count` - 1."""

    @property
    def count(self) -> int:
        """Number of rows."""
        ...

    @property
    def width(self) -> int:
        """Elements of a row."""
        ...

    @property
    def dtype(self) -> DType:
        """The dtype of `read`'s rows: a stored one for copies, float32 or float64 for computed rows."""
        ...

    @property
    def tables(self) -> tuple[TokenTable, ...]:
        """The tables that are read."""
        ...

    @property
    def identity(self) -> Identity:
        """What the rows depend on besides the bytes of `tables`; known without reading them."""
        ...

    def prepare(self) -> None:
        """Do what must be done once, such as a fit; thread-safe, and implied by the first `read`."""
        ...

    def read(self, which: Index) -> Words:
        """Rows `which`, as unsigned integers of the dtype's width, shape (len(which), width); thread-safe."""
        ...


@runtime_checkable
class FittedFilling(Filling, Protocol):
    """Rows that are fitted when they are first read."""

    @property
    def fit_bytes(self) -> int:
        """Memory that the fit takes while it is made, about."""
        ...

    @property
    def kept_bytes(self) -> int:
        """Memory that it takes from then on."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Fill:
    """Row `targets[i]` of an aligned table is row i of `rows`; (M,) distinct target rows."""

    targets: Index
    rows: Filling

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", as_index(self.targets))
        if len(self.targets) != self.rows.count:
            raise UsageError(f"{self.rows.count} rows cannot fill {len(self.targets)} places.")


@dataclass(frozen=True, eq=False)
class AlignedRows(Shaped):
    """A stored table in the order of a target vocabulary: a lazy tensor.

    Row r is row `rows[r]` of `source` (rows: (R,) of int64), what a fill has for r where that is -1, else zero. Rows
    lie along `axis` (see `TokenTable`); the shape is the source's with R rows. The dtype is the source's as long as
    rows are copied from tables of that dtype; otherwise all is widened, exactly, to the smallest dtype that holds
    everything (bfloat16 with computed float32 rows: float32). Nothing is read before `read_into`, and memory does not
    depend on R beyond the index: 18 bytes per row, and what a fill's fit needs.

    Raises UsageError for an index that does not fit and CompatibilityError for fills of another width, or of another
    dtype for a table of integers.
    """

    source: LazyTensor
    rows: Index
    fills: tuple[Fill, ...] = ()
    axis: int = 0
    shape: tuple[int, ...] = field(init=False)
    dtype: DType = field(init=False)
    own: TokenTable = field(init=False, repr=False)
    _origins: NDArray[np.int16] = field(init=False, repr=False)
    _places: Index = field(init=False, repr=False)

    def __post_init__(self) -> None:
        own = TokenTable(self.source, self.axis)
        rows = as_index(self.rows)
        own.require_rows(rows)
        shape = self.source.shape
        shape = (*shape[: self.axis], len(rows), *shape[self.axis + 1 :])
        dtypes = {fill.rows.dtype for fill in self.fills if fill.rows.count} | {own.dtype}
        for name, value in (("rows", rows), ("own", own), ("shape", shape)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "dtype", self._common(dtypes))
        origins = np.where(rows >= 0, _OWN, -1).astype(np.int16)
        places = rows.copy()
        for number, fill in enumerate(self.fills, start=1):
            self._require_fill(fill, origins)
            origins[fill.targets] = number
            places[fill.targets] = np.arange(len(fill.targets))
        object.__setattr__(self, "_origins", origins)
        object.__setattr__(self, "_places", places)

    def _common(self, dtypes: set[DType]) -> DType:
        if len(dtypes) > 1 and not all(dtype.is_float for dtype in dtypes):
            listed = ", ".join(sorted(map(str, dtypes)))
            raise CompatibilityError(
                f"{self.source.location} cannot take rows of other dtypes ({listed}): only floats are widened."
            )
        return promote(sorted(dtypes, key=str))

    def _require_fill(self, fill: Fill, origins: NDArray[np.int16]) -> None:
        targets = fill.targets
        if fill.rows.width != self.own.width:
            raise CompatibilityError(
                f"{self.source.location} has rows of {self.own.width} elements, and rows of {fill.rows.width} were "
                "to be put into it: the models have different hidden sizes, choose a rule that fits rows to each other."
            )
        if targets.size and not 0 <= targets.min() <= targets.max() < len(origins):
            raise UsageError(
                f"{self.source.location}: rows {targets.min()} to {targets.max()} are outside of {len(origins)} rows."
            )
        if len(np.unique(targets)) < len(targets) or (origins[targets] >= 0).any():
            raise UsageError(f"{self.source.location}: a row has more than one origin.")

    @property
    def name(self) -> str:
        """The source's name."""
        return self.source.name

    @property
    def location(self) -> str:
        """The source's file and tensor, for messages."""
        return self.source.location

    @property
    def is_unchanged(self) -> bool:
        """True where every row is the source's row of the same number, so that the source can stand for it."""
        return len(self.rows) == self.own.count and bool(
            np.array_equal(self.rows, np.arange(self.own.count))
        )

    @property
    def index_bytes(self) -> int:
        """Bytes of the index in memory."""
        return self.rows.nbytes + self._origins.nbytes + self._places.nbytes

    @property
    def fits(self) -> tuple[FittedFilling, ...]:
        """The fills that are fitted when they are first read."""
        return tuple(fill.rows for fill in self.fills if isinstance(fill.rows, FittedFilling))

    @functools.cached_property
    def sources(self) -> tuple[LazyTensor, ...]:
        """The tensors that are read, the source first, each once."""
        tables = [self.own, *(table for fill in self.fills for table in fill.rows.tables)]
        return tuple({id(table.tensor): table.tensor for table in tables}.values())

    @property
    def parts(self) -> tuple[LazyTensor, ...]:
        """The sources."""
        return self.sources

    @property
    def cost(self) -> ReadingCost:
        """Rows of the source and rows that fills copy count one by one; tables that a rule is fitted to, whole."""
        below = ReadingCost.of(self.sources)
        own = self.source.cost.stored_bytes * int((self.rows >= 0).sum()) // max(1, self.own.count)
        filled = sum(_filling_bytes(fill.rows) for fill in self.fills)
        return below._replace(stored_bytes=own + filled)

    @functools.cached_property
    def identity(self) -> Identity:
        """What the tensor is, as long as the files of `sources` stay the same: for the digest of a plan."""
        fills = tuple((array_digest(fill.targets), fill.rows.identity) for fill in self.fills)
        return ("aligned rows 1", self.own.identity, array_digest(self.rows), *fills)

    def prepare(self) -> None:
        """Fit what must be fitted, now rather than at the first `read_into`; thread-safe."""
        for fill in self.fills:
            fill.rows.prepare()

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Write elements [start, stop), in C order, as little-endian bytes of `dtype`; thread-safe.

        Raises ValueError if range or buffer do not fit, CheckpointError if a source cannot be read, and
        NonFiniteError where a row is computed from one that is not finite.
        """
        itemsize, width = self.dtype.itemsize, self.own.width
        view = memoryview(buffer)
        if not 0 <= start <= stop <= self.numel or view.nbytes != (stop - start) * itemsize:
            raise ValueError(
                f"elements {start}..{stop} of {self.numel} and a buffer of {view.nbytes} bytes do not fit "
                f"{self.location}"
            )
        if start == stop:
            return
        out = np.frombuffer(view.cast("B"), WORDS[itemsize])
        first, last = -(-start // width), stop // width
        if first > last:
            # All within one row.
            out[:] = self._row(last)[start - last * width : stop - last * width]
            return
        head, tail = first * width - start, stop - last * width
        if head:
            out[:head] = self._row(first - 1)[width - head :]
        if tail:
            out[-tail:] = self._row(last)[:tail]
        if first < last:
            self._read_rows(first, last, out[head : len(out) - tail].reshape(-1, width))

    def _row(self, row: int) -> Words:
        out: Words = np.empty((1, self.own.width), WORDS[self.dtype.itemsize])
        self._read_rows(row, row + 1, out)
        return out.reshape(-1)

    def _read_rows(self, first: int, last: int, out: Words) -> None:
        origins, places = self._origins[first:last], self._places[first:last]
        present = np.flatnonzero(np.bincount(origins + 1)) - 1
        if -1 in present:
            out[origins == -1] = 0
        if _OWN in present:
            is_all = len(present) == 1
            self._read_own(places if is_all else np.where(origins == _OWN, places, -1), out)
        for number, fill in enumerate(self.fills, start=1):
            if number in present:
                chosen = np.flatnonzero(origins == number)
                self._put(fill.rows.read(places[chosen]), fill.rows.dtype, chosen, out)

    def _read_own(self, rows: Index, out: Words) -> None:
        if self.own.dtype is self.dtype:
            self.own.read_rows(rows, out)
            return
        step = max(1, _WIDENED_BYTES // (self.own.width * self.own.dtype.itemsize))
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            chosen = np.flatnonzero(part >= 0)
            self._put(self.own.read(part[chosen]), self.own.dtype, start + chosen, out)

    def _put(self, words: Words, dtype: DType, places: Index, out: Words) -> None:
        if dtype is self.dtype:
            out[places] = words
        else:
            out.view(_FLOATS[self.dtype])[places] = widen(words, dtype)


def _filling_bytes(rows: Filling) -> int:
    """Bytes of files that the rows of a fill take, about."""
    if isinstance(rows, FittedFilling):
        return ReadingCost.of(table.tensor for table in rows.tables).stored_bytes
    return rows.count * rows.width * rows.dtype.itemsize


_FLOATS: dict[DType, Any] = {DType.FLOAT32: "<f4", DType.FLOAT64: "<f8"}
