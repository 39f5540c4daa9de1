"""A tensor of one number, stored once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.stored import LazyTensor


@dataclass(frozen=True, slots=True)
class Repeated:
    """A `LazyTensor` of any shape whose elements are all the one that is stored."""

    stored: LazyTensor
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """The stored tensor's name."""
        return self.stored.name

    @property
    def dtype(self) -> DType:
        """The type of the elements."""
        return self.stored.dtype

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements, dense."""
        return self.numel * self.dtype.itemsize

    @property
    def location(self) -> str:
        """File and tensor, for messages."""
        return self.stored.location

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Repeat the element for [start, stop)."""
        one = bytearray(self.dtype.itemsize)
        self.stored.read_into(0, 1, memoryview(one))
        buffer[:] = bytes(one) * (stop - start)
