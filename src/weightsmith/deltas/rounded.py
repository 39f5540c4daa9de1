"""A tensor of floats rounded to another float dtype, to the same bits everywhere."""

from __future__ import annotations

from weightsmith.deltas.decoded_tensors import DecodedTensor
from weightsmith.graph import Value, source
from weightsmith.tensors import DType, FromStored, LazyTensor

# Whether a NaN keeps its sign and payload when it is rounded is left to hardware and library, so all become this one.
_NAN = {
    DType.FLOAT64: 0x7FF8 << 48,
    DType.FLOAT32: 0x7FC0 << 16,
    DType.FLOAT16: 0x7E00,
    DType.BFLOAT16: 0x7FC0,
    DType.FLOAT8_E4M3FN: 0x7F,
    DType.FLOAT8_E5M2: 0x7F,
}


class RoundedTensor(FromStored):
    """A `LazyTensor` of `stored` in the float dtype `dtype`: rounded once as a merge's output is, NaN to one NaN."""

    def __init__(self, stored: LazyTensor, dtype: DType) -> None:
        self.stored = stored
        self.name, self.shape = stored.name, stored.shape
        self._rounded = DecodedTensor(
            stored.name, dtype, stored.shape, (stored,), _first, may_overflow=True
        )

    @property
    def dtype(self) -> DType:
        """The type that elements are rounded to."""
        return self._rounded.dtype

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Round elements [start, stop); thread-safe. Raises what the stored tensor raises."""
        import numpy as np

        from weightsmith.tensors import WORDS, widen

        self._rounded.read_into(start, stop, buffer)
        words = np.frombuffer(buffer, WORDS[self.dtype.itemsize])
        words[np.isnan(widen(words, self.dtype))] = _NAN[self.dtype]


def _first() -> Value:
    return source(0)
