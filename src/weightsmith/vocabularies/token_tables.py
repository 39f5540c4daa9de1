"""Tensors seen as tables: one row per token, read by index."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from weightsmith.errors import NonFiniteError, UsageError
from weightsmith.tensors import WORDS, DType, LazyTensor, StoredTensor, row_runs, widen

Index = NDArray[np.int64]
Words = NDArray[Any]
Identity = tuple[Any, ...]

# A separate read costs about as much as reading this many bytes too many.
_WORTH_A_READ = 1 << 14
_NARROW_BYTES = 256
# Bytes of a span that is read to pick rows out of it, and of rows that are widened at a time.
_SPAN_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, eq=False)
class TokenTable:
    """A tensor with one row of `width` elements for each of `count` tokens.

    Tokens are counted by `axis`: 0 for embeddings, heads and their biases, 1 for biases of shape (1, V). Raises
    UsageError where that axis is missing or more than one element comes before it.
    """

    tensor: LazyTensor
    axis: int = 0

    def __post_init__(self) -> None:
        shape = self.tensor.shape
        if not 0 <= self.axis < len(shape) or math.prod(shape[: self.axis]) != 1:
            raise UsageError(
                f"{self.tensor.location} of shape {shape} has no rows of tokens along axis {self.axis}."
            )

    @property
    def count(self) -> int:
        """Number of rows."""
        return self.tensor.shape[self.axis]

    @property
    def width(self) -> int:
        """Elements of a row."""
        return math.prod(self.tensor.shape[self.axis + 1 :])

    @property
    def dtype(self) -> DType:
        """The stored dtype."""
        return self.tensor.dtype

    @property
    def wide_dtype(self) -> DType:
        """The dtype in which rows are given by `numbers`: float64 for float64, else float32."""
        return DType.FLOAT64 if self.dtype is DType.FLOAT64 else DType.FLOAT32

    @property
    def identity(self) -> Identity:
        """What tells this table from any other, given that its file stays the same."""
        tensor = self.tensor
        kind: Identity = (str(tensor.dtype), tensor.shape, self.axis)
        if isinstance(tensor, StoredTensor):
            return (tensor.name, tensor.file.name, tensor.offset, tensor.strides, *kind)
        return (tensor.name, getattr(tensor, "identity", tensor.location), *kind)

    def require_rows(self, rows: Index) -> None:
        """Raise UsageError for an index outside of the table; -1 stands for no row."""
        if rows.size and not -1 <= rows.min() <= rows.max() < self.count:
            raise UsageError(
                f"{self.tensor.location} has {self.count} rows, and the index asks for rows {rows.min()} to "
                f"{rows.max()}."
            )

    def read(self, rows: Index) -> Words:
        """The rows as stored, as unsigned integers of shape (len(rows), width)."""
        found = np.empty((len(rows), self.width), WORDS[self.dtype.itemsize])
        self.read_rows(rows, found)
        return found

    def numbers(self, rows: Index) -> NDArray[Any]:
        """The rows as finite float32 (float64 for float64) numbers, exactly.

        Raises NonFiniteError, naming the row, where a number is not finite.
        """
        found = widen(self.read(rows), self.dtype)
        # A sum over the row is not finite where one of its numbers is not; an overflow of finite ones is told apart.
        with np.errstate(over="ignore", invalid="ignore"):
            suspects = np.flatnonzero(~np.isfinite(found.sum(axis=1)))
        bad = [i for i in suspects.tolist() if not np.isfinite(found[i]).all()]
        if bad:
            raise NonFiniteError(
                f"Row {int(rows[bad[0]])} of {self.tensor.location} holds a NaN or an infinity, and rows of missing "
                "tokens cannot be computed from it: repair the checkpoint or choose another rule."
            )
        return found

    def blocks(self, rows: Index) -> Iterator[tuple[int, NDArray[Any]]]:
        """`numbers` of all rows, a few at a time: (position of the first, the numbers)."""
        step = max(1, 4 * _SPAN_BYTES // max(8 * self.width, 1))
        for start in range(0, len(rows), step):
            yield start, self.numbers(rows[start : start + step])

    def read_rows(self, rows: Index, out: Words) -> None:
        """Put row `rows[i]` into `out[i]`, which is C-contiguous and of the stored width; -1 leaves it as it is.

        Neighbours that are neighbours in the table too are read at once, straight into `out`. Rows so narrow that
        reading each would cost more than its bytes are picked out of longer spans.
        """
        if not len(rows) or not self.width:
            return
        if self.width * self.dtype.itemsize < _NARROW_BYTES:
            self._read_spans(rows, out)
        elif isinstance(self.tensor, StoredTensor):
            self.tensor.read_rows(rows, self.width, out.data)
        else:
            self._read_runs(rows, out)

    def _read_runs(self, rows: Index, out: Words) -> None:
        for low, high in row_runs(rows):
            first = int(rows[low])
            part = out[low:high].data.cast("B")
            self.tensor.read_into(first * self.width, (first + high - low) * self.width, part)

    def _read_spans(self, rows: Index, out: Words) -> None:
        present = np.flatnonzero(rows >= 0)
        if not len(present):
            return
        order = present[np.argsort(rows[present], kind="stable")]
        ascending = rows[order]
        for low, high in _spans(ascending, self.width * self.dtype.itemsize):
            first, last = int(ascending[low]), int(ascending[high - 1]) + 1
            span: Words = np.empty((last - first, self.width), out.dtype)
            self.tensor.read_into(first * self.width, last * self.width, span.data.cast("B"))
            out[order[low:high]] = span[ascending[low:high] - first]


def _spans(ascending: Index, row_bytes: int) -> list[tuple[int, int]]:
    """Positions [low, high) of rows that are read together: small gaps between them, and not too many."""
    gap_rows = max(1, _WORTH_A_READ // row_bytes)
    longest = max(1, _SPAN_BYTES // row_bytes)
    apart = np.diff(ascending) > gap_rows
    # Fixed windows of the table bound the span.
    apart |= np.diff(ascending // longest) != 0
    ends = np.flatnonzero(apart) + 1
    return list(zip([0, *ends.tolist()], [*ends.tolist(), len(ascending)], strict=True))


def as_index(rows: Any) -> Index:
    """A private, contiguous copy of an index, which nobody can write to."""
    index = np.array(rows, np.int64).reshape(-1)
    index.flags.writeable = False
    return index


def array_digest(array: NDArray[Any]) -> str:
    """xxh3-128 of the array's bytes, for identities."""
    return xxhash.xxh3_128_hexdigest(np.ascontiguousarray(array).data)
