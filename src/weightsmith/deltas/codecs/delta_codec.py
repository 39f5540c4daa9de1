"""The change of one tensor as lossy codecs see it: blocks of float32, and what is measured over them once."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.deltas.codecs.directions import leading_directions
from weightsmith.deltas.codecs.held import BLOCK, block_sizes, fitted
from weightsmith.errors import CompatibilityError, NonFiniteError
from weightsmith.graph import Spectrum
from weightsmith.tensors import WORDS, LazyTensor, matrix_shape, widen

Change = NDArray[np.float32]
# Changes up to this many elements are held while codecs are tried; larger ones are computed again for each pass.
_HELD = 1 << 26
# Values that share the upper half of their ordered float32 bits share a bin: 2^-7 of their size, and the sign.
BINS = 1 << 16


class Delta:
    """target - base, in float32 (taken in float64 where one of them is), with -0 made 0.

    A base with another number of rows counts as continued with zeros. Raises CompatibilityError for other shapes and
    for dtypes that are no floats.
    """

    def __init__(self, base: LazyTensor, target: LazyTensor) -> None:
        known = fitted(base, target.name, target.shape)
        if known is None:
            raise CompatibilityError(
                f"{target.location} of shape {list(target.shape)} cannot be taken as a change of {base.location} of "
                f"shape {list(base.shape)}: store it whole."
            )
        self.base, self.target = known, target
        self.shape, self.numel = target.shape, target.numel
        self.sizes = block_sizes(target.numel)
        self._kept: dict[int, Change] = {}

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns, see `matrix_shape`."""
        return matrix_shape(self.shape)

    def block(self, number: int) -> Change:
        """Elements [number 2^20, (number + 1) 2^20) of the change, flat; not to be written to."""
        found = self._kept.get(number)
        if found is None:
            start = number * BLOCK
            found = self._between(start, start + int(self.sizes[number]))
            if self.numel <= _HELD:
                self._kept[number] = found
        return found

    def blocks(self) -> Iterator[Change]:
        """All blocks in order."""
        return (self.block(number) for number in range(len(self.sizes)))

    def rows(self, first: int, last: int) -> Change:
        """Rows [first, last) of the change as the matrix of shape `matrix`."""
        columns = self.matrix[1]
        return self._between(first * columns, last * columns).reshape(-1, columns)

    @functools.cached_property
    def squares(self) -> float:
        """The sum of the squared elements, in float64."""
        return math.fsum(float(np.square(b, dtype=np.float64).sum()) for b in self.blocks())

    @functools.cached_property
    def mean_size(self) -> float:
        """The mean of the absolute values, in float64."""
        return math.fsum(float(np.abs(b).sum(dtype=np.float64)) for b in self.blocks()) / max(
            self.numel, 1
        )

    @property
    def is_finite(self) -> bool:
        """Whether no element is NaN or infinite."""
        return math.isfinite(self.mean_size)

    @property
    def is_zero(self) -> bool:
        """Whether nothing changes in value."""
        return self.mean_size == 0.0

    @functools.cached_property
    def histogram(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Elements by bin, and their sums, in float64; bins are in the order of values."""
        return histogram_of(self.blocks())

    @functools.cached_property
    def directions(self) -> Spectrum:
        """The leading singular directions of the matrix, see `leading_directions`."""
        return leading_directions(self.rows, self.matrix)

    def row_means(self, measure: Callable[[Change], NDArray[Any]]) -> NDArray[np.float64]:
        """The mean over each row of what `measure` makes of elements, in float64; rows are cut where blocks are."""
        rows, columns = self.matrix
        totals = np.zeros(rows)
        for number, block in enumerate(self.blocks()):
            start = number * BLOCK
            first, last = start // columns, -(-(start + block.size) // columns)
            cuts = np.maximum(np.arange(first, last) * columns - start, 0)
            totals[first:last] += np.add.reduceat(measure(block), cuts, dtype=np.float64)
        return totals / columns

    @functools.cached_property
    def row_sizes(self) -> NDArray[np.float64]:
        """The mean of the absolute values of each row."""
        return self.row_means(np.abs)

    def require_finite(self) -> None:
        """Raise NonFiniteError if an element is NaN or infinite."""
        if not self.is_finite:
            raise NonFiniteError(
                f"The change of {self.target.location} holds NaN or infinite numbers: only an exact codec can store it."
            )

    def _between(self, start: int, stop: int) -> Change:
        target, base = floats(self.target, start, stop), floats(self.base, start, stop)
        with np.errstate(over="ignore", invalid="ignore"):
            found: Change = np.subtract(target, base).astype(np.float32, copy=False)
            found += np.float32(0)
        found.flags.writeable = False
        return found


def bins_of(values: Change) -> NDArray[np.uint16]:
    """The bin of each value: the upper half of its ordered float32 bits."""
    high = values.view(np.uint16)[1::2]
    negative = high.view(np.int16) >> 15
    bins: NDArray[np.uint16] = high ^ (negative.view(np.uint16) | np.uint16(0x8000))
    return bins


def bin_edges() -> NDArray[np.float64]:
    """The lower edge of every bin, and the upper edge of the last, rising; those of infinity and NaN lie at 2^128."""
    ordered = np.arange(BINS + 1, dtype=np.int64) - BINS // 2
    size = np.where(ordered < 0, -ordered, ordered).clip(max=0x7F80).astype(np.uint32)
    values = (size << np.uint32(16)).view(np.float32).astype(np.float64)
    edges: NDArray[np.float64] = np.copysign(np.minimum(values, 2.0**128), ordered)
    return edges


def histogram_of(blocks: Iterator[Change]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Elements by bin and their sums, in float64."""
    counts, sums = np.zeros(BINS), np.zeros(BINS)
    for block in blocks:
        bins = bins_of(block)
        counts += np.bincount(bins, minlength=BINS)
        sums += np.bincount(bins, weights=block, minlength=BINS)
    return counts, sums


def floats(tensor: LazyTensor, start: int, stop: int) -> NDArray[Any]:
    """Elements [start, stop) in float32, or float64 where they are. Raises CompatibilityError if they are no floats."""
    if not tensor.dtype.is_float:
        raise CompatibilityError(
            f"{tensor.location} is of {tensor.dtype}, which lossy codecs do not take: store it exactly."
        )
    words = np.empty(stop - start, WORDS[tensor.dtype.itemsize])
    tensor.read_into(start, stop, words.data.cast("B"))
    return widen(words, tensor.dtype)
