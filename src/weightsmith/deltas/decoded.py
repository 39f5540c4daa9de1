"""A dense tensor computed from stored parts, block by block, with the arithmetic of a merge."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.graph import Value
from weightsmith.tensors.passes import Backend, PassSpec, TilePass
from weightsmith.tensors.stored import FromSources, LazyTensor

# Elements decoded at a time, which bounds the memory of a read.
_BLOCK = 1 << 18
_NUMBERS = {DType.FLOAT32: np.float32, DType.FLOAT64: np.float64}


@functools.cache
def _backend() -> Backend:
    """The native kernels where they were built, else torch on the CPU; both give the same bits."""
    from weightsmith.tensors import native

    if native.available():
        return native.load()
    from weightsmith.tensors.torch_backend import TorchBackend

    return TorchBackend("cpu")


@dataclass(frozen=True, slots=True, eq=False)
class DecodedTensor(FromSources):
    """A `LazyTensor` of elements that `graph(*constants)` computes from the elements of `sources` at the same place.

    The graph's source i is `sources[i]`; `constants` are stored single numbers (float32 or float64), read when the
    first element is asked for. Elements are rounded to `dtype` once, exactly as a merge's output.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    sources: tuple[LazyTensor, ...]
    graph: Callable[..., Value]
    constants: tuple[LazyTensor, ...] = ()
    _compiled: list[TilePass] = field(default_factory=list)
    _lock: Any = field(default_factory=threading.Lock)

    @property
    def parts(self) -> tuple[LazyTensor, ...]:
        """The sources and the constants."""
        return (*self.sources, *self.constants)

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Decode elements [start, stop); thread-safe. Raises CheckpointError as the sources do."""
        compiled = self._pass()
        view = memoryview(buffer).cast("B")
        for at in range(start, stop, _BLOCK):
            end = min(at + _BLOCK, stop)
            parts: list[memoryview | None] = [_read(source, at, end) for source in self.sources]
            size = self.dtype.itemsize
            out = view[(at - start) * size : (end - start) * size]
            compiled.run(parts, 0, end - at, out)

    def _pass(self) -> TilePass:
        with self._lock:
            if not self._compiled:
                output = self.graph(*(_number(constant) for constant in self.constants))
                dtypes = tuple(source.dtype for source in self.sources)
                spec = PassSpec((_BLOCK,), dtypes, output, self.dtype)
                self._compiled.append(_backend().compile(spec))
            return self._compiled[0]


def _read(source: LazyTensor, start: int, stop: int) -> memoryview:
    data = memoryview(bytearray((stop - start) * source.dtype.itemsize))
    source.read_into(start, stop, data)
    return data


def _number(constant: LazyTensor) -> float:
    return float(np.frombuffer(_read(constant, 0, 1), _NUMBERS[constant.dtype])[0])
