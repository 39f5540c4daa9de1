"""A stored tensor with a change on top, computed while it is read."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.deltas.changes import Change, Matrix
from weightsmith.deltas.rewritings import Rewriting
from weightsmith.errors import NonFiniteError
from weightsmith.tensors import (
    WORDS,
    DType,
    FromSources,
    LazyTensor,
    ReadingCost,
    matrix_shape,
    widen,
)

# Elements computed at a time. Blocks begin at multiples of their rows whatever part is read, so that each element comes
# out of the same product and its bits do not depend on the tile.
_BLOCK = 1 << 16
# Bytes of a number of a factor in memory.
_NUMBER = 8
# Tensors whose factors are held: those that threads read at this moment, and a few more.
MOST_HELD = 16
# What a thread takes for a block: the change, the base, their sum and what is handed out.
BLOCK_BYTES = 4 * _NUMBER * _BLOCK
_holders: collections.OrderedDict[int, ChangedTensor] = collections.OrderedDict()
_holders_lock = threading.Lock()


@dataclass(frozen=True, slots=True, eq=False)
class ChangedTensor(FromSources):
    """A `LazyTensor` of base + change, in float32 (float64 where the base is), rounded once from float64.

    `load` gives the change when the first element is asked for, or a rewriting of the base's rows; `factors` are the
    stored tensors that it is the product of, `beside` others that it is read from. With `magnitude` g it is
    g (base + change) / ||base + change|| by row, or by column where `by_column` (DoRA; Liu et al. 2024,
    arXiv:2402.09353), g having one number for each row, or for each column or equally many columns side by side (the
    kernel of one input of a convolution). Rows and columns of norm 0 stay 0.
    """

    base: LazyTensor
    factors: tuple[LazyTensor, ...]
    load: Callable[[], Change | Rewriting]
    magnitude: LazyTensor | None = None
    by_column: bool = False
    beside: tuple[LazyTensor, ...] = ()
    _loaded: list[tuple[Change | Rewriting, Matrix | None]] = field(default_factory=list)
    _lock: Any = field(default_factory=threading.Lock)

    def __reduce__(self) -> tuple[Any, ...]:
        """What another process makes it from again: all but what was loaded, and the lock."""
        made_of = (self.base, self.factors, self.load, self.magnitude, self.by_column, self.beside)
        return type(self), made_of

    @property
    def name(self) -> str:
        """The base's name."""
        return self.base.name

    @property
    def dtype(self) -> DType:
        """The type that elements are computed in."""
        return DType.FLOAT64 if self.base.dtype is DType.FLOAT64 else DType.FLOAT32

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return self.base.shape

    @property
    def sources(self) -> tuple[LazyTensor, ...]:
        """The stored tensors that it is computed from."""
        magnitude = () if self.magnitude is None else (self.magnitude,)
        return (self.base, *self.factors, *magnitude, *self.beside)

    @property
    def cost(self) -> ReadingCost:
        """That of the sources; the factors are held in float64, and multiplied rows x columns x rank times.

        The rank is taken from the sizes of the factors: a pair of them has rank times as many numbers as the tensor has
        rows and columns.
        """
        below = ReadingCost.of(self.sources)
        numbers = sum(factor.numel for factor in self.factors)
        border = max(1, sum(matrix_shape(self.shape)))
        return ReadingCost(
            below.stored_bytes,
            below.held_bytes + _NUMBER * numbers,
            below.products + self.numel * numbers // border,
        )

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Compute elements [start, stop); thread-safe.

        Raises CheckpointError as the sources do, and NonFiniteError where an element of the base is finite and what
        becomes of it is not.
        """
        if start == stop:
            return
        change, gain = self._parts()
        rows, columns = change.shape
        step = max(1, _BLOCK // columns)
        out: NDArray[Any] = np.frombuffer(
            buffer, np.float64 if self.dtype is DType.FLOAT64 else np.float32
        )
        for first in range(start // columns // step * step, -(-stop // columns), step):
            last = min(first + step, rows)
            # What is too large becomes infinite here, and is refused below.
            with np.errstate(over="ignore", invalid="ignore"):
                block = self._block(change, gain, first, last).astype(out.dtype)
            if not np.isfinite(block).all():
                self._refuse(block, gain, first)
            low, high = max(start, first * columns), min(stop, last * columns)
            part = slice(low - first * columns, high - first * columns)
            out[low - start : high - start] = block.reshape(-1)[part]

    def _block(
        self, change: Change | Rewriting, gain: Matrix | None, first: int, last: int
    ) -> Matrix:
        changed = self._changed_rows(change, first, last)
        if gain is None:
            return changed
        if self.by_column:
            return changed * gain
        return changed * over_norms(gain[first:last], np.linalg.norm(changed, axis=1))[:, None]

    def _changed_rows(self, change: Change | Rewriting, first: int, last: int) -> Matrix:
        rows = self._base_rows(first, last, change.shape[1])
        if isinstance(change, Rewriting):
            return change.rewritten(rows, first)
        return rows + change.rows(first, last)

    def _base_rows(self, first: int, last: int, columns: int) -> Matrix:
        rows = read_elements(self.base, first * columns, last * columns)
        return rows.reshape(last - first, columns)

    def _refuse(self, block: NDArray[Any], gain: Matrix | None, first: int) -> None:
        """Raise NonFiniteError for an element that is not finite though the base is: factors are, when they are loaded.

        What the base itself does not have in finite numbers is for those to judge who read it.
        """
        base = np.isfinite(self._base_rows(first, first + len(block), block.shape[1]))
        if gain is not None:
            # Norms take in a whole row, or a whole column.
            base &= np.isfinite(gain) if self.by_column else base.all(axis=1, keepdims=True)
        found = np.flatnonzero(base & ~np.isfinite(block))
        if found.size:
            raise NonFiniteError(
                f"{self.location}: the change overflows {self.dtype} at element "
                f"{first * block.shape[1] + int(found[0])}; give the adapter a smaller strength, or look for damage in "
                "its scale and factors."
            )

    def _parts(self) -> tuple[Change | Rewriting, Matrix | None]:
        """The change, and what rows (or columns, these over their norms) are multiplied with."""
        with self._lock:
            # A copy, because another thread may let go of them at any time.
            found = self._loaded[:]
            if not found:
                change = self.load()
                found.append((change, self._gain(change)))
                self._loaded[:] = found
        self._hold()
        return found[0]

    def _hold(self) -> None:
        """Keep the factors of the tensors that were read last, and let go of others'."""
        with _holders_lock:
            _holders[id(self)] = self
            _holders.move_to_end(id(self))
            while len(_holders) > MOST_HELD:
                _, oldest = _holders.popitem(last=False)
                oldest._loaded.clear()

    def _gain(self, change: Change | Rewriting) -> Matrix | None:
        if self.magnitude is None:
            return None
        gain = read_matrix(self.magnitude).reshape(-1)
        if not self.by_column:
            return gain
        rows, columns = change.shape
        step = max(1, _BLOCK // columns)
        squares = np.zeros(columns)
        for first in range(0, rows, step):
            last = min(first + step, rows)
            with np.errstate(over="ignore", invalid="ignore"):
                squares += np.square(self._changed_rows(change, first, last)).sum(axis=0)
        return column_factors(gain, squares)


@dataclass(frozen=True, slots=True, eq=False)
class Towards:
    """The change from one tensor to another of its shape, other - base, computed while it is read.

    `columns` is the length of a row, that of `matrix_shape` where it is not given.
    """

    base: LazyTensor
    other: LazyTensor
    columns: int | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        if self.columns is None:
            return matrix_shape(self.base.shape)
        return self.base.numel // self.columns, self.columns

    def rows(self, start: int, stop: int) -> Matrix:
        """Rows [start, stop), whole."""
        columns = self.shape[1]
        low, high = start * columns, stop * columns
        found = read_elements(self.other, low, high) - read_elements(self.base, low, high)
        return found.reshape(stop - start, columns)


@dataclass(frozen=True, slots=True, eq=False)
class Rewritten:
    """The change that a rewriting makes of a tensor, computed while the tensor is read."""

    base: LazyTensor
    rewriting: Rewriting

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.rewriting.shape

    def rows(self, start: int, stop: int) -> Matrix:
        """Rows [start, stop), whole."""
        columns = self.shape[1]
        found = read_elements(self.base, start * columns, stop * columns).reshape(-1, columns)
        return self.rewriting.rewritten(found, start) - found


def column_factors(gain: Matrix, squares: Matrix) -> Matrix:
    """What every column is multiplied with: the gain of its input over that input's norm.

    `squares` are sums of squares by column; the columns of one kernel of a convolution share an input.
    """
    together = len(squares) // len(gain)
    return np.repeat(over_norms(gain, np.sqrt(squares.reshape(-1, together).sum(axis=1))), together)


def over_norms(gain: Matrix, norms: Matrix) -> Matrix:
    """gain / norms, 0 where a norm is 0."""
    found: Matrix = np.divide(gain, norms, out=np.zeros_like(gain), where=norms > 0.0)
    return found


def read_matrix(tensor: LazyTensor) -> Matrix:
    """A stored tensor of floats, whole, in float64 and in its own shape: for factors, which are small.

    Raises CompatibilityError for a dtype that is no float.
    """
    return read_elements(tensor, 0, tensor.numel).reshape(tensor.shape)


def read_elements(tensor: LazyTensor, start: int, stop: int) -> Matrix:
    """Elements [start, stop) in float64; raises CompatibilityError for a dtype that is no float."""
    words = np.empty(stop - start, WORDS[tensor.dtype.itemsize])
    tensor.read_into(start, stop, words.data.cast("B"))
    return widen(words, tensor.dtype).astype(np.float64)
