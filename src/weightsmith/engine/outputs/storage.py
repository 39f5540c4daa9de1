"""How the numbers that a formula gives are stored: as they are, as one bit each, or one of them for all."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from weightsmith.deltas import BitPacker
from weightsmith.tensors import DType, LazyTensor


class Sink(Protocol):
    """Where the bytes of an output tensor go."""

    def write(self, start: int, data: memoryview) -> None:
        """Take the bytes that begin at element `start`."""
        ...


class StorageForm(Protocol):
    """A form of a tensor in a file.

    `is_plain`: the file has the very bytes that were computed, so that their digest is the tensor's. Any other form is
    read back to be digested.
    """

    @property
    def is_plain(self) -> bool: ...

    def dtype(self, computed: DType) -> DType:
        """The dtype in the file."""
        ...

    def shape(self, computed: tuple[int, ...]) -> tuple[int, ...]:
        """The shape in the file."""
        ...

    def sink(self, placed: Sink, dtype: DType, shape: tuple[int, ...]) -> Sink:
        """What takes computed elements of `dtype` and `shape`, and passes on to `placed` what is stored."""
        ...


@dataclass(frozen=True, slots=True)
class Plain:
    """All elements, as they were computed."""

    is_plain: bool = True

    def dtype(self, computed: DType) -> DType:
        return computed

    def shape(self, computed: tuple[int, ...]) -> tuple[int, ...]:
        return computed

    def sink(self, placed: Sink, dtype: DType, shape: tuple[int, ...]) -> Sink:
        return placed


@dataclass(frozen=True, slots=True)
class Bits:
    """A mask, one bit for each element (see `deltas.bits`)."""

    is_plain: bool = False

    def dtype(self, computed: DType) -> DType:
        return DType.UINT8

    def shape(self, computed: tuple[int, ...]) -> tuple[int, ...]:
        return (-(-math.prod(computed) // 8),)

    def sink(self, placed: Sink, dtype: DType, shape: tuple[int, ...]) -> Sink:
        return BitPacker(math.prod(shape), placed.write)


@dataclass(frozen=True, slots=True)
class StoredConstant:
    """The first element of a tensor whose elements are all equal."""

    is_plain: bool = False

    def dtype(self, computed: DType) -> DType:
        return computed

    def shape(self, computed: tuple[int, ...]) -> tuple[int, ...]:
        return ()

    def sink(self, placed: Sink, dtype: DType, shape: tuple[int, ...]) -> Sink:
        return _FirstElement(placed.write, dtype.itemsize)


@dataclass(frozen=True, slots=True)
class _FirstElement:
    pass_on: Callable[[int, memoryview], None]
    itemsize: int

    def write(self, start: int, data: memoryview) -> None:
        """Pass on the tensor's first element."""
        if start == 0:
            self.pass_on(0, data[: self.itemsize])


PLAIN, BITS, CONSTANT = Plain(), Bits(), StoredConstant()


@dataclass(frozen=True, slots=True)
class Target:
    """Where an output of a job goes: rounded to `dtype`, in the form `storage`, to `placed`.

    `back` reads what was stored, which is asked for where the form is not plain. `reads` are the sources that the
    output's own formula names; None for all.
    """

    dtype: DType
    placed: Sink
    storage: StorageForm = PLAIN
    back: Callable[[], LazyTensor] | None = None
    reads: tuple[int, ...] | None = None
