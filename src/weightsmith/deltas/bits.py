"""Masks of one bit per element: packed while they are written, unpacked while they are read.

Element i is bit i % 8 (the lowest first) of byte i // 8; the bits beyond the last element are 0.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from weightsmith.tensors import DType, LazyTensor, Shaped

# What masks are unpacked to: the narrowest float, of which 1.0 has these bits.
MASK = DType.FLOAT8_E4M3FN
_ONE = 0x38


def packed_bytes(elements: int) -> int:
    """Bytes that hold so many bits."""
    return -(-elements // 8)


class BitPacker:
    """A sink that takes masks in `MASK` elements and passes packed bytes on to `write(first byte, bytes)`.

    Thread-safe: a byte on the edge between two tiles is written again when its other half is known.
    """

    def __init__(self, elements: int, write: Callable[[int, memoryview], None]) -> None:
        self._elements = elements
        self._write = write
        self._edges: dict[int, int] = {}
        self._lock = threading.Lock()

    def write(self, start: int, data: memoryview) -> None:
        """Take the elements that begin at `start`."""
        before = start % 8
        bits = np.zeros(before + len(data), np.uint8)
        bits[before:] = np.frombuffer(data, np.uint8)
        packed = np.packbits(bits, bitorder="little")
        first, last = start // 8, (start + len(data) - 1) // 8
        whole_from = first + (1 if before else 0)
        is_open = (start + len(data)) % 8 != 0 and start + len(data) < self._elements
        whole_to = last if is_open else last + 1
        if whole_from < whole_to:
            self._write(whole_from, packed[whole_from - first : whole_to - first].data)
        for byte in {first, last} - set(range(whole_from, whole_to)):
            self._write_edge(byte, int(packed[byte - first]))

    def _write_edge(self, byte: int, value: int) -> None:
        with self._lock:
            self._edges[byte] = joined = self._edges.get(byte, 0) | value
            self._write(byte, memoryview(bytes([joined])))


@dataclass(frozen=True, slots=True)
class PackedBits(Shaped):
    """A `LazyTensor` of 0 and 1 in `MASK` elements, unpacked from the bytes of `packed`."""

    name: str
    shape: tuple[int, ...]
    packed: LazyTensor

    @property
    def dtype(self) -> DType:
        """The type of the unpacked elements."""
        return MASK

    @property
    def location(self) -> str:
        """File and tensor, for messages."""
        return self.packed.location

    @property
    def parts(self) -> tuple[LazyTensor, ...]:
        """The packed bytes."""
        return (self.packed,)

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Unpack elements [start, stop) into `buffer`; the bits beyond the last element are left out."""
        first, end = start // 8, packed_bytes(stop)
        data = np.empty(end - first, np.uint8)
        self.packed.read_into(first, end, data.data)
        bits = np.unpackbits(data, bitorder="little", count=stop - first * 8)[start - first * 8 :]
        np.multiply(bits, np.uint8(_ONE), out=np.frombuffer(buffer, np.uint8))
