"""Tensors whose elements lie in another order than those of the tensors that they are read from.

A file may keep a matrix as inputs x outputs, an expert's gate and up side by side or in alternate columns, and two
halves in the other order; each of these is a view, of which any range is read within bounded memory.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.tensors import DType, FromSources, FromStored, LazyTensor, ReadingCost, gather

# Columns are gathered so many bytes at a time, since each time much of the matrix is read; every thread keeps the last.
_BAND = 1 << 24
_LAST = threading.local()


@dataclass(frozen=True, slots=True)
class StridedView(FromStored):
    """A `LazyTensor` of `shape` whose element i, j, ... is number first + i s_0 + j s_1 + ... of `stored`.

    `strides` are the s, in elements. Columns of a large matrix are read in bands of 16 MiB, each of which reads much of
    the matrix.
    """

    name: str
    stored: LazyTensor
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def cost(self) -> ReadingCost:
        """That of its share of the whole, and a band."""
        whole = self.stored.cost
        share = whole.stored_bytes * self.numel // max(1, self.stored.numel)
        band = 0 if self.strides[-1:] == (1,) else min(_BAND, self.numel * self.dtype.itemsize)
        return whole._replace(stored_bytes=share, held_bytes=whole.held_bytes + band)

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Read elements [start, stop), in C order of `shape`; thread-safe."""
        size = self.dtype.itemsize
        out = memoryview(buffer).cast("B")
        step = _BAND // size
        if self.strides[-1:] == (1,) or stop - start >= step:
            self._gather(start, stop, out)
            return
        for number in range(start // step, -(-stop // step)):
            first = number * step
            low, high = max(start, first), min(stop, first + step)
            band = self._band(first, min(first + step, self.numel))
            out[(low - start) * size : (high - start) * size] = band[
                (low - first) * size : (high - first) * size
            ]

    def _band(self, start: int, stop: int) -> memoryview:
        """A band of elements, kept until the thread asks for another."""
        held = getattr(_LAST, "band", None)
        if held is None or held[0] is not self or held[1] != start:
            data = memoryview(bytearray((stop - start) * self.dtype.itemsize))
            _LAST.band = None
            self._gather(start, stop, data)
            _LAST.band = held = (self, start, data)
        found: memoryview = held[2]
        return found

    def _gather(self, start: int, stop: int, out: memoryview) -> None:
        size = self.dtype.itemsize

        def read(at: int, part: memoryview) -> None:
            first = self.first + at
            self.stored.read_into(first, first + part.nbytes // size, part)

        gather(read, size, self.shape, self.strides, start, stop, out)


@dataclass(frozen=True, slots=True)
class JoinedColumns(FromSources):
    """A `LazyTensor` of the last axes of `sources`, behind one another, or `alternating` where all are equally long.

    All have one dtype and the same axes before the last. Alternating, column 2 j + p of two sources is column j of
    source p.
    """

    name: str
    sources: tuple[LazyTensor, ...]
    alternating: bool = False

    @property
    def dtype(self) -> DType:
        """The sources' dtype."""
        return self.sources[0].dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return (*self.sources[0].shape[:-1], sum(source.shape[-1] for source in self.sources))

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Read elements [start, stop); thread-safe."""
        import numpy as np

        from weightsmith.tensors import WORDS

        if start == stop:
            return
        # numpy has no bfloat16 and no float8: elements are moved as words of their size.
        word = WORDS[self.dtype.itemsize]
        width = self.shape[-1]
        low, high = start // width, -(-stop // width)
        rows = np.empty((high - low, width), word)
        first = 0
        for number, source in enumerate(self.sources):
            own = source.shape[-1]
            read = np.empty((high - low, own), word)
            source.read_into(low * own, high * own, read.data.cast("B"))
            count = len(self.sources)
            place = slice(number, None, count) if self.alternating else slice(first, first + own)
            rows[:, place] = read
            first += own
        out = np.frombuffer(buffer, word)
        out[:] = rows.reshape(-1)[start - low * width : stop - low * width]


def turned(tensor: LazyTensor, name: str) -> LazyTensor:
    """The tensor with its last two axes exchanged."""
    *before, rows, columns = tensor.shape
    outer = [rows * columns * math.prod(before[place + 1 :]) for place in range(len(before))]
    return StridedView(name, tensor, 0, (*before, columns, rows), (*outer, 1, columns))


def reshaped(tensor: LazyTensor, name: str, shape: Sequence[int]) -> LazyTensor:
    """The same elements, in the same order, with axes of other lengths."""
    from weightsmith.deltas.row_views import Stretch

    return Stretch(name, tensor, 0, tuple(shape))
