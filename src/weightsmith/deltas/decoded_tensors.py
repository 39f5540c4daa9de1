"""A dense tensor computed from stored parts, block by block, with the arithmetic of a merge."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.errors import NonFiniteError
from weightsmith.graph import Backend, PassSpec, TilePass, Value
from weightsmith.tensors import WORDS, DType, FromSources, LazyTensor, read_bytes, widen

# Elements decoded at a time, which bounds the memory of a read.
_BLOCK = 1 << 18
_NUMBERS = {DType.FLOAT32: np.float32, DType.FLOAT64: np.float64}


@functools.cache
def _backend() -> Backend:
    """The native kernels where they were built, else torch on the CPU; both give the same bits."""
    from weightsmith.graph import native

    if native.available():
        return native.load()
    from weightsmith.graph import TorchBackend

    return TorchBackend("cpu")


@dataclass(frozen=True, slots=True, eq=False)
class DecodedTensor(FromSources):
    """A `LazyTensor` of elements that `graph(*constants)` computes from the elements of `sources` at the same place.

    The graph's source i is `sources[i]`; `constants` are stored single numbers (float32 or float64), read when the
    first element is asked for. Elements are rounded to `dtype` once, exactly as a merge's output; with `may_overflow`
    what is too large for it becomes infinite.
    """

    name: str
    dtype: DType
    shape: tuple[int, ...]
    sources: tuple[LazyTensor, ...]
    graph: Callable[..., Value]
    constants: tuple[LazyTensor, ...] = ()
    may_overflow: bool = False
    _compiled: list[TilePass] = field(default_factory=list)
    _lock: Any = field(default_factory=threading.Lock)

    @property
    def parts(self) -> tuple[LazyTensor, ...]:
        """The sources and the constants."""
        return (*self.sources, *self.constants)

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Decode elements [start, stop); thread-safe.

        Raises CheckpointError as the sources do, and, unless it `may_overflow`, NonFiniteError where all sources of an
        element are finite and the element is not.
        """
        compiled = self._pass()
        view = memoryview(buffer).cast("B")
        for at in range(start, stop, _BLOCK):
            end = min(at + _BLOCK, stop)
            parts: list[memoryview | None] = [
                memoryview(read_bytes(source, at, end)) for source in self.sources
            ]
            size = self.dtype.itemsize
            out = view[(at - start) * size : (end - start) * size]
            ((number, _),) = compiled.run(parts, 0, end - at, (out,)).nonfinite_outputs
            if number and not self.may_overflow:
                self._refuse(parts, out, at)

    def _refuse(self, parts: Sequence[memoryview | None], out: memoryview, at: int) -> None:
        finite = np.ones(len(out) // self.dtype.itemsize, bool)
        for source, part in zip(self.sources, parts, strict=True):
            if part is not None and source.dtype.is_float:
                finite &= _is_finite(part, source.dtype)
        found = np.flatnonzero(finite & ~_is_finite(out, self.dtype))
        if found.size:
            raise NonFiniteError(
                f"{self.location}: what is decoded overflows {self.dtype} at element {at + int(found[0])}; it is "
                "damaged, or was made for another base: fetch it or make it again."
            )

    def _pass(self) -> TilePass:
        with self._lock:
            if not self._compiled:
                output = self.graph(*(_number(constant) for constant in self.constants))
                dtypes = tuple(source.dtype for source in self.sources)
                spec = PassSpec((_BLOCK,), dtypes, ((output, self.dtype),))
                self._compiled.append(_backend().compile(spec))
            return self._compiled[0]


def _is_finite(data: memoryview, dtype: DType) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = np.isfinite(widen(np.frombuffer(data, WORDS[dtype.itemsize]), dtype))
    return found


def _number(constant: LazyTensor) -> float:
    return float(np.frombuffer(read_bytes(constant, 0, 1), _NUMBERS[constant.dtype])[0])
