"""Results of matrix methods that statistics of the whole model were measured on, kept on disk until the output.

They are as large as the model, so memory does not hold them, and too costly to compute twice. The file has no name:
it is gone when the process is.
"""

from __future__ import annotations

import math
import os
import tempfile
import threading
import weakref
from collections.abc import Hashable, Sequence
from pathlib import Path

from weightsmith.errors import ResourceError
from weightsmith.tensors import DType, LazyTensor, Shaped, pwrite_all


class ScratchTensor(Shaped):
    """A `LazyTensor` in the scratch file."""

    def __init__(
        self, name: str, dtype: DType, shape: tuple[int, ...], scratch: Scratch, offset: int
    ) -> None:
        self.name, self.dtype, self.shape = name, dtype, shape
        self.location = f"intermediate result of tensor {name!r}"
        self._scratch, self._offset = scratch, offset

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Copy elements [start, stop); raises ResourceError if they cannot be read."""
        at = self._offset + start * self.dtype.itemsize
        view = buffer.cast("B")[: (stop - start) * self.dtype.itemsize]
        while view:
            count = self._scratch.read(view, at)
            if count == 0:
                raise ResourceError(
                    f"The {self.location} cannot be read back; check the disk and give the same command again."
                )
            at, view = at + count, view[count:]

    def write(self, start: int, data: memoryview) -> None:
        """Put elements from `start` on; raises ResourceError or OutputError where the disk does not take them."""
        self._scratch.write(data, self._offset + start * self.dtype.itemsize)


class Scratch:
    """The scratch file of one run, made in `folder` (default: that of the system) when it is first written to."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._descriptor = -1
        self._end = 0
        self._lock = threading.Lock()
        self._found: dict[Hashable, list[LazyTensor]] = {}

    def put(
        self,
        key: Hashable,
        name: str,
        dtype: DType,
        shape: tuple[int, ...],
        results: Sequence[memoryview],
    ) -> list[LazyTensor]:
        """Write arrays of one shape; they are found again under the key."""
        kept: list[LazyTensor] = []
        for data in results:
            offset = at = self._claim(data.nbytes)
            view = data.cast("B")
            while view:
                count = os.pwrite(self._descriptor, view, at)
                at, view = at + count, view[count:]
            kept.append(ScratchTensor(name, dtype, shape, self, offset))
        self._found[key] = kept
        return kept

    def room(self, name: str, dtype: DType, shape: tuple[int, ...]) -> ScratchTensor:
        """A tensor whose elements are still to be written."""
        offset = self._claim(math.prod(shape) * dtype.itemsize)
        return ScratchTensor(name, dtype, shape, self, offset)

    def write(self, data: memoryview, at: int) -> None:
        """Put bytes at an offset; raises ResourceError or OutputError where the disk does not take them."""
        pwrite_all(
            self._descriptor, data, at, (self._folder or Path(tempfile.gettempdir())) / "scratch"
        )

    def get(self, key: Hashable) -> list[LazyTensor] | None:
        """What was put under the key."""
        return self._found.get(key)

    def read(self, view: memoryview, at: int) -> int:
        """Fill the bytes of a buffer from an offset on; returns how many there were."""
        return os.preadv(self._descriptor, [view], at)

    def _claim(self, nbytes: int) -> int:
        """The offset of so many new bytes in the file, which is open afterwards."""
        with self._lock:
            if self._descriptor < 0:
                with tempfile.TemporaryFile(dir=self._folder) as file:
                    self._descriptor = os.dup(file.fileno())
                weakref.finalize(self, os.close, self._descriptor)
            offset = self._end
            self._end += nbytes
            return offset
