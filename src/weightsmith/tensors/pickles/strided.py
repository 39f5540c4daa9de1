"""Reading a strided view of a file in C order, within bounded memory and without reading much more
than is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

# A system call costs about as much as reading this many bytes from the page cache.
_CHEAP_BYTES = 64 * 1024
_LARGEST_SPAN_BYTES = 8 * 1024 * 1024

ReadElements = Callable[[int, memoryview], None]
Extent = tuple[int, ...]
_Words = npt.NDArray[np.unsignedinteger[npt.NBitBase]]
_WORD: dict[int, npt.DTypeLike] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def contiguous_strides(shape: Sequence[int]) -> Extent:
    """The strides, in elements, of a dense C-ordered tensor."""
    strides: list[int] = []
    step = 1
    for length in reversed(shape):
        strides.append(step)
        step *= max(length, 1)
    return tuple(reversed(strides))


def is_contiguous(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """True if the view is dense and C-ordered; the stride of an axis of length 1 says nothing."""
    if 0 in shape:
        return True
    dense = contiguous_strides(shape)
    return all(n == 1 or s == d for n, s, d in zip(shape, strides, dense, strict=True))


def span_elements(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Elements of storage between the first and the last element of a view, both included; 0 for an
    empty view.
    """
    if 0 in shape:
        return 0
    return sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + 1


def gather(
    read: ReadElements,
    itemsize: int,
    shape: Extent,
    strides: Extent,
    start: int,
    stop: int,
    out: memoryview,
) -> None:
    """Write elements [start, stop), counted in C order of `shape`, into `out` (bytes).

    `read(first, buffer)` fills a buffer with the storage's elements from index `first` on; strides
    are in elements. At most 8 MiB is held beside `out`.
    """
    words = np.frombuffer(out, dtype=_WORD[itemsize])
    axes = [(n, s) for n, s in zip(shape, strides, strict=True) if n != 1]
    shape, strides = tuple(n for n, _ in axes), tuple(s for _, s in axes)
    _gather_range(read, shape, strides, 0, start, stop, words)


def _gather_range(
    read: ReadElements,
    shape: Extent,
    strides: Extent,
    origin: int,
    start: int,
    stop: int,
    out: _Words,
) -> None:
    """Cut a C-ordered range into boxes: the end of a first row, whole rows, the beginning of a last
    row.
    """
    if start >= stop:
        return
    if not shape:
        _gather_box(read, shape, strides, origin, out.reshape(()))
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row
    if first > last:
        inside = start // row
        _gather_range(
            read,
            shape[1:],
            strides[1:],
            origin + inside * strides[0],
            start - inside * row,
            stop - inside * row,
            out,
        )
        return
    head, body = first * row - start, (last - first) * row
    if head:
        _gather_range(
            read,
            shape[1:],
            strides[1:],
            origin + (first - 1) * strides[0],
            row - head,
            row,
            out[:head],
        )
    if body:
        box = (last - first, *shape[1:])
        _gather_box(
            read, box, strides, origin + first * strides[0], out[head : head + body].reshape(box)
        )
    _gather_range(
        read,
        shape[1:],
        strides[1:],
        origin + last * strides[0],
        0,
        stop - last * row,
        out[head + body :],
    )


def _gather_box(
    read: ReadElements, shape: Extent, strides: Extent, origin: int, out: _Words
) -> None:
    """Read the span of a box in one go if most of it is wanted or it is small; else halve its
    longest-reaching axis.
    """
    itemsize = out.dtype.itemsize
    span = span_elements(shape, strides)
    wanted = math.prod(shape)
    if span * itemsize <= _CHEAP_BYTES or (
        span <= 2 * wanted and span * itemsize <= _LARGEST_SPAN_BYTES
    ):
        storage = np.empty(span, out.dtype)
        read(origin, storage.data.cast("B"))
        byte_strides = [s * itemsize for s in strides]
        out[...] = np.lib.stride_tricks.as_strided(storage, shape, byte_strides, writeable=False)
        return
    axis = max(range(len(shape)), key=lambda a: (shape[a] - 1) * strides[a])
    half = shape[axis] // 2
    before, after = np.split(out, [half], axis=axis)
    _gather_box(read, before.shape, strides, origin, before)
    _gather_box(read, after.shape, strides, origin + half * strides[axis], after)


def row_runs(rows: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Positions [low, high) whose rows follow one another, so that they are read at once; -1 is in no run."""
    present = rows >= 0
    joined = present[:-1] & (np.diff(rows) == 1)
    starts = np.flatnonzero(present & ~np.append(False, joined)[: len(rows)])
    stops = np.flatnonzero(present & ~np.append(joined, False)[: len(rows)]) + 1
    return list(zip(starts.tolist(), stops.tolist(), strict=True))
