"""What matrix methods read and leave: tensors of a job that are held in memory."""

from __future__ import annotations

import numpy as np

from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.stored import Shaped


class MemoryTensor(Shaped):
    """A `LazyTensor` that a matrix method has left in memory."""

    def __init__(self, name: str, dtype: DType, shape: tuple[int, ...], data: memoryview) -> None:
        self.name, self.dtype, self.shape = name, dtype, shape
        self.location = f"intermediate result of tensor {name!r}"
        self._data = memoryview(data)

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Copy elements [start, stop)."""
        buffer[:] = self._data[start * self.dtype.itemsize : stop * self.dtype.itemsize]


class MemorySink:
    """A tensor's bytes, collected in memory."""

    def __init__(self, dtype: DType, numel: int) -> None:
        self.data = np.empty(numel * dtype.itemsize, np.uint8).data
        self._itemsize = dtype.itemsize

    def write(self, start: int, data: memoryview) -> None:
        """Take the bytes that begin at element `start`."""
        self.data[start * self._itemsize : start * self._itemsize + len(data)] = data
