"""Tensors made of rows of others: some of the first, those of one below those of another, or some in others' place.

Rows of any length lie behind one another, so a stack of matrices is the rows of all, and a part of it a stretch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightsmith.tensors import DType, FromSources, FromStored, LazyTensor, ReadingCost

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class SomeRows(FromStored):
    """A `LazyTensor` of the rows [first, last) of `stored`, which has at least one axis."""

    stored: LazyTensor
    first: int
    last: int

    @property
    def name(self) -> str:
        """The stored tensor's name."""
        return self.stored.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return (self.last - self.first, *self.stored.shape[1:])

    @property
    def cost(self) -> ReadingCost:
        """That of these rows."""
        whole, rows = self.stored.cost, max(1, self.stored.shape[0])
        return whole._replace(stored_bytes=whole.stored_bytes * self.shape[0] // rows)

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Read elements [start, stop) of these rows; thread-safe."""
        skipped = self.first * math.prod(self.stored.shape[1:])
        self.stored.read_into(skipped + start, skipped + stop, buffer)


@dataclass(frozen=True, slots=True)
class JoinedRows(FromSources):
    """A `LazyTensor` of the rows of `sources`, one tensor's below another's; all have one dtype and one row length."""

    name: str
    sources: tuple[LazyTensor, ...]

    @property
    def dtype(self) -> DType:
        """The sources' dtype."""
        return self.sources[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return (sum(source.shape[0] for source in self.sources), *self.sources[0].shape[1:])

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Read elements [start, stop); thread-safe."""
        _read_joined(self.sources, start, stop, buffer)


@dataclass(frozen=True, slots=True)
class StackedTensors(FromSources):
    """A `LazyTensor` of `shape` whose elements are those of `sources`, of one dtype, one tensor's after another's.

    What is one array in memory and many in a file: experts stacked, gate and up of each below one another.
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[LazyTensor, ...]

    @property
    def dtype(self) -> DType:
        """The sources' dtype."""
        return self.sources[0].dtype

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Read elements [start, stop); thread-safe."""
        _read_joined(self.sources, start, stop, buffer)


@dataclass(frozen=True, slots=True)
class Stretch(FromStored):
    """A `LazyTensor` of `shape` whose elements are those of `stored` from `first` on: one expert of a stack."""

    name: str
    stored: LazyTensor
    first: int
    shape: tuple[int, ...]

    @property
    def cost(self) -> ReadingCost:
        """That of its share of the whole."""
        whole = self.stored.cost
        share = whole.stored_bytes * self.numel // max(1, self.stored.numel)
        return whole._replace(stored_bytes=share)

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Read elements [start, stop) of the stretch; thread-safe."""
        self.stored.read_into(self.first + start, self.first + stop, buffer)


@dataclass(frozen=True, slots=True)
class ReplacedRows(FromSources):
    """A `LazyTensor` of `base` with the rows `picked` taken, in their order, from `other`, which has only these.

    Elements are float32 (float64 where one of the two is), to which both are widened without loss.
    """

    base: LazyTensor
    other: LazyTensor
    picked: tuple[int, ...]

    @property
    def name(self) -> str:
        """The base's name."""
        return self.base.name

    @property
    def dtype(self) -> DType:
        """The type that both fit in."""
        wide = DType.FLOAT64 in (self.base.dtype, self.other.dtype)
        return DType.FLOAT64 if wide else DType.FLOAT32

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return self.base.shape

    @property
    def sources(self) -> tuple[LazyTensor, ...]:
        """The base and the rows."""
        return (self.base, self.other)

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Read elements [start, stop); thread-safe."""
        import numpy as np

        out = np.frombuffer(buffer, np.float64 if self.dtype is DType.FLOAT64 else np.float32)
        out[:] = _elements(self.base, start, stop)
        length = math.prod(self.shape[1:])
        for number, row in enumerate(self.picked):
            low, high = max(start, row * length), min(stop, (row + 1) * length)
            if low < high:
                shift = (number - row) * length
                out[low - start : high - start] = _elements(self.other, low + shift, high + shift)


def _read_joined(sources: Sequence[LazyTensor], start: int, stop: int, buffer: memoryview) -> None:
    """Elements [start, stop) of tensors of one dtype that lie behind one another."""
    view = memoryview(buffer).cast("B")
    size, first = sources[0].dtype.itemsize, 0
    for source in sources:
        last = first + source.numel
        low, high = max(start, first), min(stop, last)
        if low < high:
            part = view[(low - start) * size : (high - start) * size]
            source.read_into(low - first, high - first, part)
        first = last


def _elements(tensor: LazyTensor, start: int, stop: int) -> NDArray[np.float64]:
    from weightsmith.deltas.changed import read_elements

    return read_elements(tensor, start, stop)
