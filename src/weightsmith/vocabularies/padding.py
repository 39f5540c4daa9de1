"""Rows that stand for no token: the mean of the rows that do, as in mergekit."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from weightsmith.tensors import DType, widen
from weightsmith.vocabularies.aligned_rows import AlignedRows
from weightsmith.vocabularies.token_tables import Identity, Index, TokenTable, Words

_BLOCK_BYTES = 1 << 20


class MeanOfRows:
    """`count` equal rows: the mean of the rows `of` an aligned table, summed in float64 and rounded to its dtype.

    Where that has 8 bits the mean is float32. One that is not finite is given as it is. Read when first asked for.
    """

    def __init__(self, aligned: AlignedRows, of: Index, count: int) -> None:
        self.aligned = aligned
        self.of = of
        self.count = count
        self._lock = threading.Lock()
        self._row: Words | None = None

    def __reduce__(self) -> tuple[object, ...]:
        return MeanOfRows, (self.aligned, self.of, self.count)

    @property
    def width(self) -> int:
        """Elements of a row."""
        return self.aligned.own.width

    @property
    def dtype(self) -> DType:
        """That of the aligned table, float32 for 8-bit floats."""
        own = self.aligned.dtype
        return DType.FLOAT32 if own.is_fp8 else own

    @property
    def tables(self) -> tuple[TokenTable, ...]:
        """The tables whose rows are read."""
        fills = [table for fill in self.aligned.fills for table in fill.rows.tables]
        return (self.aligned.own, *fills)

    @property
    def identity(self) -> Identity:
        """The table that the mean is of."""
        return ("mean of rows 1", self.count, len(self.of), self.aligned.identity)

    def prepare(self) -> None:
        """Take the mean, if it is not done yet."""
        with self._lock:
            if self._row is None:
                self._row = self._mean()

    def read(self, which: Index) -> Words:
        """The mean, once for each of `which`."""
        self.prepare()
        assert self._row is not None
        return np.broadcast_to(self._row, (len(which), self.width))

    def _mean(self) -> Words:
        size = self.aligned.dtype.itemsize
        step = max(1, _BLOCK_BYTES // (size * max(self.width, 1)))
        wanted = np.zeros(self.aligned.shape[self.aligned.axis], bool)
        wanted[self.of] = True
        total = np.zeros(self.width)
        for start in range(0, len(wanted), step):
            chosen = wanted[start : start + step]
            if not chosen.any():
                continue
            words = np.empty((len(chosen), self.width), f"<u{size}")
            stop = start + len(chosen)
            self.aligned.read_into(start * self.width, stop * self.width, words.data.cast("B"))
            rows = widen(words[chosen], self.aligned.dtype)
            total += rows.sum(axis=0, dtype=np.float64)
        return _rounded(total / max(len(self.of), 1), self.dtype)


def _rounded(numbers: NDArray[np.float64], dtype: DType) -> Words:
    if dtype is DType.FLOAT64:
        return numbers.view("<u8")
    if dtype is DType.FLOAT16:
        return numbers.astype("<f2").view("<u2")
    words = numbers.astype("<f4").view("<u4")
    if dtype is not DType.BFLOAT16:
        return words
    # To the nearest, ties to even; what is not finite is cut off, which leaves it what it is.
    upper = np.where(np.isfinite(words.view("<f4")), 0x7FFF + ((words >> 16) & 1), 0)
    return ((words + upper.astype(np.uint32)) >> 16).astype("<u2")
