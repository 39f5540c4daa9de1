"""Tensors without bytes of their own: of one number everywhere, and those that stand for one other after the other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.stored import LazyTensor, Shaped


@dataclass(frozen=True, slots=True)
class ConstantTensor(Shaped):
    """The same float32 number everywhere; `location` is what messages call it."""

    name: str
    shape: tuple[int, ...]
    number: float
    location: str

    @property
    def dtype(self) -> DType:
        """float32."""
        return DType.FLOAT32

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Write the number `stop` - `start` times."""
        np.frombuffer(buffer, np.float32)[: stop - start] = self.number


class StandIn(Shaped):
    """A float32 tensor that reads what it `holds` at the time, whose dtype and shape are its own."""

    def __init__(self, holds: LazyTensor) -> None:
        self.name, self.shape, self.location = holds.name, holds.shape, holds.location
        self.holds = holds

    @property
    def dtype(self) -> DType:
        """float32."""
        return DType.FLOAT32

    @property
    def parts(self) -> tuple[LazyTensor, ...]:
        """What it holds."""
        return (self.holds,)

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """As what it holds."""
        self.holds.read_into(start, stop, buffer)
