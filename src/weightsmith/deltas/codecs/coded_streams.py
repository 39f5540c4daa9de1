"""Streams of separately compressed blocks with a table of their lengths, so that any block is read by itself."""

from __future__ import annotations

import itertools
import threading
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from weightsmith.deltas.codecs.codec import StoredChange, read_array
from weightsmith.deltas.codecs.held import BLOCK, block_sizes
from weightsmith.tensors import DType

_RAW = -zlib.MAX_WBITS
_LEVEL, _MEMORY = 1, 9
Table = NDArray[np.uint32]


def deflated(data: NDArray[np.uint8], strategy: int) -> bytes:
    """Raw deflate at level 1 with `zlib.Z_RLE` or `zlib.Z_HUFFMAN_ONLY`; matching buys nothing on weights."""
    machine = zlib.compressobj(_LEVEL, zlib.DEFLATED, _RAW, _MEMORY, strategy)
    return machine.compress(data.data) + machine.flush()


def inflated(data: NDArray[np.uint8], most: int) -> bytes | None:
    """What raw deflate has made of at most `most` bytes; None if the data is damaged or would give more.

    No more than `most` + 1 bytes are ever made, whatever the data claims.
    """
    machine = zlib.decompressobj(_RAW)
    try:
        # One byte more than is due, so that the end mark is read and an overlong stream shows.
        found = machine.decompress(data.data, most + 1)
    except zlib.error:
        return None
    ended = machine.eof and not machine.unused_data
    return found if ended and len(found) <= most else None


def joined(blocks: Sequence[Sequence[bytes]], columns: int) -> tuple[NDArray[np.uint8], Table]:
    """The pieces of all blocks behind one another, and their lengths, a row for each block."""
    table = np.array([[len(piece) for piece in block] for block in blocks], np.uint32)
    stream = b"".join(piece for block in blocks for piece in block)
    return np.frombuffer(stream, np.uint8), table.reshape(len(blocks), columns)


def stored_sizes(stored: StoredChange, table: str = "table") -> NDArray[np.int64]:
    """Elements of each block, once the part `table` was seen to have a row for each. Raises CheckpointError."""
    stored.part(table, DType.UINT32, (-(-stored.numel // BLOCK), None))
    return block_sizes(stored.numel)


class BlockStream:
    """The pieces of each block in the part `stream`, by the lengths in the part `table`.

    `limits(table)` gives the most bytes that each piece may have; `columns` are the pieces of a block, the first
    `counts` columns of the table being numbers that are no lengths. Both parts' forms are checked at once, the lengths
    when the first block is read. Raises CheckpointError.
    """

    def __init__(
        self,
        stored: StoredChange,
        names: tuple[str, str],
        columns: tuple[int, int],
        blocks: int,
        limits: Callable[[NDArray[np.int64]], NDArray[np.int64]],
    ) -> None:
        counts, pieces = columns
        self._stored = stored
        self._names = names
        self._counts = counts
        self._limits = limits
        self._stream = stored.part(names[0], DType.UINT8, (None,))
        self._table = stored.part(names[1], DType.UINT32, (blocks, counts + pieces))
        self._pieces = pieces
        self._lock = threading.Lock()
        self._read: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None

    def counts(self) -> NDArray[np.int64]:
        """The numbers of each block that are no lengths, a row for each block."""
        return self._edges()[0]

    def block(self, number: int) -> list[NDArray[np.uint8]]:
        """The pieces of one block."""
        edges = self._edges()[1][number * self._pieces : (number + 1) * self._pieces + 1]
        data = np.empty(int(edges[-1] - edges[0]), np.uint8)
        if data.size:
            self._stream.read_into(int(edges[0]), int(edges[-1]), data.data)
        return [data[low - edges[0] : high - edges[0]] for low, high in itertools.pairwise(edges)]

    def _edges(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        with self._lock:
            if self._read is None:
                table = read_array(self._table).astype(np.int64)
                lengths = table[:, self._counts :]
                if (lengths > self._limits(table)).any():
                    raise self._stored.damaged(
                        f"has a block longer than it may be in {self._names[1]!r}"
                    )
                edges = np.concatenate([[0], np.cumsum(lengths.reshape(-1))])
                if edges[-1] != self._stream.numel:
                    raise self._stored.damaged(
                        f"has {self._stream.numel} bytes in {self._names[0]!r} where its table tells of {edges[-1]}"
                    )
                self._read = table[:, : self._counts], edges
            return self._read
