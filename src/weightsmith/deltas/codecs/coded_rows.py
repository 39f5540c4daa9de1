"""One number for each row of a change: measured over its blocks, and repeated along the row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weightsmith.deltas.codecs.codec import Parameters
from weightsmith.deltas.codecs.delta_codec import Delta
from weightsmith.errors import UsageError
from weightsmith.tensors import DType, FromStored, LazyTensor

# What a scale may stand for.
SCALES = ("tensor", "row")
# Rows have scales of their own where these are few beside the bits, and differ by more than samples of one size would.
_SHORTEST, _SPREAD = 256, 0.1


def checked_scales(settings: Parameters) -> str:
    """The setting `scales`, the tensor's by default. Raises UsageError for any other word."""
    kind = settings.get("scales", "tensor")
    if kind not in SCALES:
        raise UsageError(f"{kind!r} is no kind of scales: use one of {', '.join(SCALES)}.")
    return str(kind)


def suited_scales(delta: Delta) -> str:
    """Rows where the means of rows of 256 elements and more spread by over a tenth of their mean, else the tensor."""
    if delta.matrix[1] < _SHORTEST:
        return "tensor"
    means = delta.row_sizes
    return "row" if means.std() > _SPREAD * means.mean() else "tensor"


def along_rows(
    numbers: NDArray[np.float32], first: int, columns: int, start: int, stop: int
) -> NDArray[np.float32]:
    """The number of each of elements [start, stop); `numbers` are those of the rows from `first` to the last."""
    edges = np.arange(first, first + numbers.size + 1, dtype=np.int64) * columns
    np.clip(edges, start, stop, out=edges)
    return np.repeat(numbers, np.diff(edges))


@dataclass(frozen=True, slots=True, eq=False)
class RowNumbers(FromStored):
    """A `LazyTensor` of float32 in which each row of `columns` elements repeats one number of `stored`."""

    name: str
    shape: tuple[int, ...]
    columns: int
    stored: LazyTensor

    @property
    def dtype(self) -> DType:
        """The type of the elements."""
        return DType.FLOAT32

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Repeat the numbers of the rows that elements [start, stop) lie in."""
        first, last = start // self.columns, -(-stop // self.columns)
        numbers = np.empty(last - first, np.float32)
        self.stored.read_into(first, last, numbers.data.cast("B"))
        out = np.frombuffer(buffer, np.float32)
        out[:] = along_rows(numbers, first, self.columns, start, stop)
