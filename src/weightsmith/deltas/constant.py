"""A tensor of one number, stored once."""

from __future__ import annotations

from dataclasses import dataclass

from weightsmith.tensors import FromStored, LazyTensor


@dataclass(frozen=True, slots=True)
class Repeated(FromStored):
    """A `LazyTensor` of any shape whose elements are all the one that is stored."""

    stored: LazyTensor
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """The stored tensor's name."""
        return self.stored.name

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Repeat the element for [start, stop)."""
        one = bytearray(self.dtype.itemsize)
        self.stored.read_into(0, 1, memoryview(one))
        buffer[:] = bytes(one) * (stop - start)
