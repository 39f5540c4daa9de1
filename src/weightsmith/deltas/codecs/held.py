"""Tensors that are decoded a block at a time, and the decoded blocks that are kept for the next tile."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.tensors import DType, FromSources, FromStored, LazyTensor

# Elements of a block: the unit of random access. Each is coded by itself.
BLOCK = 1 << 20
# Decoded bytes that are kept, over all tensors: a few blocks for each thread that reads.
_KEPT = 128 << 20


def block_sizes(numel: int) -> NDArray[np.int64]:
    """Elements of each block of a tensor."""
    sizes = np.full(-(-numel // BLOCK), BLOCK, np.int64)
    if numel % BLOCK:
        sizes[-1] = numel % BLOCK
    return sizes


@dataclass(slots=True, eq=False)
class _Entry:
    lock: Any
    found: NDArray[Any] | None = None


class KeptBlocks:
    """Arrays by owner and number, the least recently used let go of beyond `limit` bytes; thread-safe.

    An array that several threads ask for is computed once, and nobody may write to it.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._lock = threading.Lock()
        self._entries: collections.OrderedDict[tuple[object, int], _Entry] = (
            collections.OrderedDict()
        )

    def get(self, owner: object, number: int, compute: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """The array, computed if it is not kept. Errors of `compute` pass through."""
        key = (owner, number)
        with self._lock:
            entry = self._entries.setdefault(key, _Entry(threading.Lock()))
            self._entries.move_to_end(key)
        with entry.lock:
            if entry.found is None:
                try:
                    found = compute()
                except BaseException:
                    self._forget(key, entry)
                    raise
                found.flags.writeable = False
                entry.found = found
                self._make_room(key, entry, found.nbytes)
            return entry.found

    def _forget(self, key: tuple[object, int], entry: _Entry) -> None:
        with self._lock:
            if self._entries.get(key) is entry:
                del self._entries[key]

    def _make_room(self, key: tuple[object, int], entry: _Entry, size: int) -> None:
        with self._lock:
            if self._entries.get(key) is not entry:
                return
            self._held += size
            for other, older in list(self._entries.items()):
                if self._held <= self._limit:
                    return
                if older.found is not None and other != key:
                    self._held -= older.found.nbytes
                    del self._entries[other]


KEPT = KeptBlocks(_KEPT)


@dataclass(frozen=True, slots=True, eq=False)
class BlockTensor(FromSources):
    """A `LazyTensor` whose elements come in blocks: `decode(i)` gives elements [i block, (i + 1) block), flat.

    The array that `decode` gives may be of any type with as many bytes. `sources` are the stored tensors behind it.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    sources: tuple[LazyTensor, ...]
    decode: Callable[[int], NDArray[Any]]
    block: int = BLOCK

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Decode elements [start, stop); thread-safe. Raises CheckpointError for damaged parts."""
        size = self.dtype.itemsize
        view = memoryview(buffer).cast("B")
        for number in range(start // self.block, -(-stop // self.block)):
            first = number * self.block
            found = KEPT.get(self, number, lambda number=number: self.decode(number))  # type: ignore[misc]
            low, high = max(start, first), min(stop, first + self.block)
            data = found.data.cast("B")[(low - first) * size : (high - first) * size]
            view[(low - start) * size : (high - start) * size] = data


@dataclass(frozen=True, slots=True, eq=False)
class Prefix(FromStored):
    """A `LazyTensor` that begins as `stored` does, cut or continued with zeros to `shape`: a table with other rows."""

    name: str
    shape: tuple[int, ...]
    stored: LazyTensor

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Read elements [start, stop); those beyond the stored ones are zero."""
        view = memoryview(buffer).cast("B")
        end = max(start, min(stop, self.stored.numel))
        known = (end - start) * self.dtype.itemsize
        if known:
            self.stored.read_into(start, end, view[:known])
        view[known:] = bytes(len(view) - known)


def fitted(base: LazyTensor, name: str, shape: tuple[int, ...]) -> LazyTensor | None:
    """The base under a target's name and with the target's number of rows; None if other axes differ."""
    if base.shape == shape and base.name == name:
        return base
    if base.shape[1:] != shape[1:] or len(base.shape) != len(shape):
        return None
    return Prefix(name, shape, base)
