"""A tensor whose rows are chosen from another's: the row gather that streams."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from weightsmith.errors import UsageError
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.stored import LazyTensor


@dataclass(frozen=True, slots=True)
class GatheredRows:
    """Row r of this tensor is row `rows[r]` of `source`, or zeros where that is -1.

    `rows` is an index of shape (R,) into the first axis of `source`, whose other axes are kept: shape (R, ...).
    Rows are read as they are asked for, and neighbours that are neighbours in the source too are read at once, so an
    index that mostly keeps the order costs what a plain read costs. Raises UsageError for a 0-d source or an
    index outside of it.
    """

    source: LazyTensor
    rows: NDArray[np.int64]
    shape: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        if not self.source.shape:
            raise UsageError(
                f"{self.source.location} is a single number and has no rows to gather."
            )
        if self.rows.size and not -1 <= self.rows.min() <= self.rows.max() < self.source.shape[0]:
            raise UsageError(
                f"{self.source.location} has {self.source.shape[0]} rows, and the index asks for rows "
                f"{self.rows.min()} to {self.rows.max()}."
            )
        object.__setattr__(self, "shape", (len(self.rows), *self.source.shape[1:]))

    @property
    def name(self) -> str:
        """The source's name."""
        return self.source.name

    @property
    def dtype(self) -> DType:
        """The source's dtype."""
        return self.source.dtype

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.numel * self.dtype.itemsize

    @property
    def location(self) -> str:
        """The source's file and tensor, for messages."""
        return self.source.location

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Write elements [start, stop) of the gathered tensor into `buffer`; thread-safe."""
        width = math.prod(self.shape[1:])
        if start == stop:
            return
        first, last = start // width, -(-stop // width)
        index = self.rows[first:last]
        # A run ends where the next source row is not the following one; runs of -1 are cut into single rows.
        ends = np.flatnonzero((np.diff(index) != 1) | (index[:-1] < 0)) + 1
        for low, high in zip([0, *ends], [*ends, len(index)], strict=True):
            begin = max(start, (first + low) * width)
            end = min(stop, (first + high) * width)
            part = buffer[
                (begin - start) * self.dtype.itemsize : (end - start) * self.dtype.itemsize
            ]
            if index[low] < 0:
                part[:] = bytes(len(part))
            else:
                shift = (int(index[low]) - first - low) * width
                self.source.read_into(begin + shift, end + shift, part)
