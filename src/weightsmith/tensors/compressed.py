"""Statistics that are stored small, seen as dense tensors: one number per element, made when it is read.

    rows and columns    v_ij = r_i c_j / sum_i r_i of row and column sums, or / mean_i r_i of means (Adafactor)
    left and right      v_ij = max(0, sum_k l_ik r_kj)
    blocks              v_i = b_(i // size), one number for `size` elements in C order
    upper               v_ij = v_ji = u_k, the rows of a symmetric matrix from the diagonal on
    channels            v_i = c_k, where element i lies in channel k
    broadcast           v_i = s_k, as arrays broadcast

Numbers that are computed are so in float64, element by element in a fixed order, and rounded once to float32: they do
not depend on the range that is asked for. Nothing is kept between two reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.errors import CheckpointError
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.stored import FromStored, LazyTensor, Shaped, read_bytes
from weightsmith.tensors.widening import WORDS, widen

# Words of a float type, and the first bit pattern of a magnitude that is no finite number.
_WORDS: dict[DType, tuple[Any, int]] = {
    DType.FLOAT16: (np.uint16, 0x7C00),
    DType.BFLOAT16: (np.uint16, 0x7F80),
    DType.FLOAT32: (np.uint32, 0x7F800000),
    DType.FLOAT64: (np.uint64, 0x7FF0000000000000),
}
# Elements that are expanded at a time.
_AT_ONCE = 1 << 16
# The float types that numbers of a statistic may have.
STATISTIC_DTYPES = tuple(_WORDS)


@dataclass(frozen=True, slots=True)
class Checked(FromStored):
    """A stored tensor whose numbers are looked at as they are read: none may be NaN or infinite.

    With `negative` False none may be below zero either. Raises CheckpointError where one is.
    """

    stored: LazyTensor
    negative: bool

    @property
    def name(self) -> str:
        """The stored tensor's name."""
        return self.stored.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The stored tensor's shape."""
        return self.stored.shape

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Write elements [start, stop) into `buffer`, and check them; thread-safe."""
        self.stored.read_into(start, stop, buffer)
        if start == stop:
            return
        kind, infinity = _WORDS[self.dtype]
        words = np.frombuffer(buffer, kind)
        # A finite number that is not below zero has a word below infinity's, so one look is mostly enough.
        if int(words.max()) < infinity:
            return
        sign = 1 << (8 * words.dtype.itemsize - 1)
        magnitudes = words & kind(sign - 1)
        if int(magnitudes.max()) >= infinity:
            at = start + int(np.argmax(magnitudes >= infinity))
            raise CheckpointError(
                f"{self.location} holds NaN or infinity at element {at}: collect the statistics again."
            )
        if not self.negative and int(words.max()) > sign:
            at = start + int(np.argmax(words > sign))
            raise CheckpointError(
                f"{self.location} holds a negative number at element {at}, which no mean of squares can be: "
                "collect the statistics again."
            )


class _Dense(Shaped):
    """What tensors that are made when they are read have in common."""

    __slots__ = ()

    @property
    def dtype(self) -> DType:
        """float32."""
        return DType.FLOAT32


@dataclass(frozen=True, slots=True)
class OuterProduct(_Dense):
    """Rows (..., m) times columns (..., n), over the total of the rows, or over their mean with `means`."""

    name: str
    shape: tuple[int, ...]
    rows: LazyTensor
    columns: LazyTensor
    means: bool

    @property
    def location(self) -> str:
        """File and tensor, for messages."""
        return self.rows.location

    @property
    def parts(self) -> tuple[LazyTensor, ...]:
        """Rows and columns."""
        return (self.rows, self.columns)

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Write elements [start, stop) as float32; thread-safe."""
        if start == stop:
            return
        m, n = self.shape[-2:]
        first, last = start // n, -(-stop // n)
        # Whole slices of rows, whose totals are needed, and of columns.
        low, high = first // m, -(-last // m)
        rows = read_range(self.rows, low * m, high * m).reshape(-1, m)
        columns = read_range(self.columns, low * n, high * n).reshape(-1, n)
        total = rows.mean(-1, keepdims=True) if self.means else rows.sum(-1, keepdims=True)
        shares = (rows / np.where(total > 0, total, 1.0)).reshape(-1)[first - low * m :]
        slices = np.arange(first, last) // m - low

        def made(a: int, b: int) -> NDArray[np.float64]:
            return shares[a:b, None] * columns[slices[a:b]]

        _store_rows(made, start - first * n, stop - first * n, n, buffer)


@dataclass(frozen=True, slots=True)
class LowRankProduct(_Dense):
    """Left (m, r) times right (r, n), negative numbers being 0."""

    name: str
    shape: tuple[int, ...]
    left: LazyTensor
    right: LazyTensor

    @property
    def location(self) -> str:
        """File and tensor, for messages."""
        return self.left.location

    @property
    def parts(self) -> tuple[LazyTensor, ...]:
        """Both factors."""
        return (self.left, self.right)

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Write elements [start, stop) as float32; thread-safe."""
        if start == stop:
            return
        n, rank = self.shape[-1], self.right.shape[0]
        first, last = start // n, -(-stop // n)
        left = read_range(self.left, first * rank, last * rank).reshape(last - first, rank)
        right = read_array(self.right)

        def made(a: int, b: int) -> NDArray[np.float64]:
            sums = np.zeros((b - a, n))
            # One term after the other: a library's product would sum in an order that depends on the range.
            for k in range(rank):
                sums += left[a:b, k, None] * right[k]
            return np.maximum(sums, 0.0, out=sums)

        _store_rows(made, start - first * n, stop - first * n, n, buffer)


@dataclass(frozen=True, slots=True)
class BlockConstant(_Dense):
    """One number for each run of `size` elements, the last run being shorter."""

    name: str
    shape: tuple[int, ...]
    blocks: LazyTensor
    size: int

    @property
    def location(self) -> str:
        """File and tensor, for messages."""
        return self.blocks.location

    @property
    def parts(self) -> tuple[LazyTensor, ...]:
        """The numbers of the blocks."""
        return (self.blocks,)

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Write elements [start, stop) as float32; thread-safe."""
        if start == stop:
            return
        first = start // self.size
        blocks = read_range(self.blocks, first, (stop - 1) // self.size + 1)
        found = np.frombuffer(buffer, np.float32)
        for low in range(start, stop, _AT_ONCE):
            high = min(low + _AT_ONCE, stop)
            found[low - start : high - start] = blocks[np.arange(low, high) // self.size - first]


@dataclass(frozen=True, slots=True)
class UpperTriangle(FromStored):
    """Symmetric matrices (..., n, n) of which rows are stored from the diagonal on, (..., n (n + 1) / 2)."""

    name: str
    shape: tuple[int, ...]
    stored: LazyTensor

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Write elements [start, stop), in the dtype of the stored ones; thread-safe."""
        n, size = self.shape[-1], self.dtype.itemsize
        step = max(1, _AT_ONCE // max(n, 1))
        row = start // n if start < stop else stop
        while row * n < stop:
            # Rows of one matrix, as many as share what is above them.
            end = min(row + step, (row // n + 1) * n, -(-stop // n))
            rows = self._rows(row // n, row % n, row % n + end - row).reshape(-1)
            low, high = max(start, row * n), min(stop, end * n)
            data = rows[(low - row * n) * size : (high - row * n) * size]
            buffer[(low - start) * size : (high - start) * size] = data.data
            row = end

    def _rows(self, matrix: int, first: int, last: int) -> NDArray[np.uint8]:
        """Rows [first, last) of a matrix of the stack, as bytes [rows, n, itemsize]."""
        n, size = self.shape[-1], self.dtype.itemsize
        found = np.empty((last - first, n, size), np.uint8)
        for above in range(last):
            column = max(above, first)
            run = self._run(matrix, above, column, last if above < first else n)
            if above < first:
                found[:, above] = run
            else:
                found[above - first, above:] = run
                found[above - first :, above] = run[: last - above]
        return found

    def _run(self, matrix: int, row: int, low: int, high: int) -> NDArray[np.uint8]:
        """Columns [low, high) of a row from the diagonal on, as bytes [columns, itemsize]."""
        n, size = self.shape[-1], self.dtype.itemsize
        at = matrix * (n * (n + 1) // 2) + row * n - row * (row - 1) // 2 + low - row
        data = read_bytes(self.stored, at, at + high - low)
        return np.frombuffer(data, np.uint8).reshape(-1, size)


@dataclass(frozen=True, slots=True)
class ByChannel(FromStored):
    """One number for each index along an axis, the same for all elements that have it."""

    name: str
    shape: tuple[int, ...]
    axis: int
    stored: LazyTensor

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Write elements [start, stop), in the dtype of the stored ones; thread-safe."""
        if start == stop:
            return
        channels = self.shape[self.axis]
        run = math.prod(self.shape[self.axis + 1 :])
        kind = WORDS[self.dtype.itemsize]
        words = np.frombuffer(read_bytes(self.stored, 0, channels), kind)
        found = np.frombuffer(buffer, kind)
        if run == 1:
            found[:] = np.resize(np.roll(words, -(start % channels)), stop - start)
            return
        for low in range(start, stop, _AT_ONCE):
            high = min(low + _AT_ONCE, stop)
            found[low - start : high - start] = words[np.arange(low, high) // run % channels]


@dataclass(frozen=True, slots=True)
class Broadcast(FromStored):
    """A small tensor repeated along axes where its length is 1, or that it lacks in front, as arrays broadcast."""

    name: str
    shape: tuple[int, ...]
    stored: LazyTensor

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Write elements [start, stop), in the dtype of the stored ones; thread-safe."""
        if start == stop:
            return
        kind = WORDS[self.dtype.itemsize]
        words = np.frombuffer(read_bytes(self.stored, 0, self.stored.numel), kind)
        found = np.frombuffer(buffer, kind)
        for low in range(start, stop, _AT_ONCE):
            high = min(low + _AT_ONCE, stop)
            places = self.places(low, high)
            found[low - start : high - start] = words[places]

    def places(self, start: int, stop: int) -> NDArray[np.int64]:
        """Which stored elements the elements [start, stop) are."""
        flat = np.arange(start, stop)
        found = np.zeros_like(flat)
        stored = (1,) * (len(self.shape) - len(self.stored.shape)) + self.stored.shape
        run = stride = 1
        for length, own in zip(reversed(self.shape), reversed(stored), strict=True):
            if own != 1:
                found += flat // run % length * stride
                stride *= own
            run *= length
        return found


def fits_by_broadcasting(shape: tuple[int, ...], stored: tuple[int, ...]) -> bool:
    """Whether an array of one shape broadcasts to another, `shape`."""
    pairs = zip(reversed(shape), reversed(stored), strict=False)
    return len(stored) <= len(shape) and all(own in (1, length) for length, own in pairs)


def read_array(tensor: LazyTensor) -> NDArray[np.float64]:
    """A small tensor whole, in float64."""
    return read_range(tensor, 0, tensor.numel).reshape(tensor.shape)


def read_range(tensor: LazyTensor, start: int, stop: int) -> NDArray[np.float64]:
    """Elements [start, stop) of a tensor, in float64."""
    data = read_bytes(tensor, start, stop)
    if tensor.dtype.is_float:
        words = np.frombuffer(data, WORDS[tensor.dtype.itemsize])
        return widen(words, tensor.dtype).astype(np.float64)
    return np.frombuffer(data, tensor.dtype.value).astype(np.float64)


def _store_rows(
    made: Callable[[int, int], NDArray[np.float64]],
    start: int,
    stop: int,
    width: int,
    buffer: memoryview,
) -> None:
    """Elements [start, stop), counted from row 0, of rows that `made(a, b)` gives, a few rows in memory at a time."""
    found = np.frombuffer(buffer, np.float32)
    step = max(1, _AT_ONCE // width)
    for row in range(0, -(-stop // width), step):
        low, high = max(start, row * width), min(stop, (row + step) * width)
        rows = made(row, min(row + step, -(-stop // width))).reshape(-1)
        found[low - start : high - start] = rows[low - row * width : high - row * width]
