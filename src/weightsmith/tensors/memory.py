"""Tensors whose bytes are in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.stored import Shaped


class MemoryTensor(Shaped):
    """A `LazyTensor` of bytes that are there; `location` is what messages call it."""

    __slots__ = ("data", "dtype", "location", "name", "shape")

    def __init__(
        self,
        name: str,
        dtype: DType,
        shape: tuple[int, ...],
        data: bytes | bytearray | memoryview,
        location: str = "",
    ) -> None:
        self.name, self.dtype, self.shape = name, dtype, shape
        self.data = memoryview(data)
        self.location = location or f"tensor {name!r} in memory"

    @classmethod
    def empty(
        cls, name: str, dtype: DType, shape: tuple[int, ...], location: str = ""
    ) -> MemoryTensor:
        """Room for a tensor, to be filled by a `MemorySink`."""
        tensor = cls(name, dtype, shape, b"", location)
        tensor.data = np.empty(tensor.nbytes, np.uint8).data
        return tensor

    @classmethod
    def of(cls, name: str, dtype: DType, array: NDArray[Any], location: str = "") -> MemoryTensor:
        """The elements of an array whose words are those of `dtype`."""
        flat = np.ascontiguousarray(array).reshape(-1)
        return cls(name, dtype, array.shape, flat.view(np.uint8).data, location)

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Copy elements [start, stop)."""
        size = self.dtype.itemsize
        memoryview(buffer).cast("B")[:] = self.data[start * size : stop * size]


class MemorySink:
    """Fills a tensor in memory; `advance` is told of bytes that were written."""

    def __init__(self, tensor: MemoryTensor, advance: Callable[[int], None] | None = None) -> None:
        self._tensor, self._advance = tensor, advance

    def write(self, start: int, data: memoryview) -> None:
        """Take the bytes that begin at element `start`."""
        at = start * self._tensor.dtype.itemsize
        self._tensor.data[at : at + data.nbytes] = data.cast("B")
        if self._advance is not None:
            self._advance(data.nbytes)
