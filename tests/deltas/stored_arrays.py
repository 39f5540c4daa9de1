"""Arrays as stored tensors, and stored tensors as arrays."""

from __future__ import annotations

import numpy as np

from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.memory import MemoryTensor
from weightsmith.tensors.stored import LazyTensor

WORDS = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def stored(array: np.ndarray, dtype: DType = DType.FLOAT32, name: str = "x") -> MemoryTensor:
    """A tensor of an array's bytes."""
    return MemoryTensor(name, dtype, array.shape, bytearray(array.tobytes()))


def read(tensor: LazyTensor, start: int = 0, stop: int | None = None) -> bytes:
    """The bytes of elements [start, stop)."""
    stop = tensor.numel if stop is None else stop
    out = bytearray((stop - start) * tensor.dtype.itemsize)
    tensor.read_into(start, stop, memoryview(out))
    return bytes(out)


def floats(tensor: LazyTensor) -> np.ndarray:
    """A float32 tensor, whole."""
    return np.frombuffer(read(tensor), np.float32).reshape(tensor.shape)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """The nearest bfloat16 words, ties to even."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bfloat16(words: np.ndarray) -> np.ndarray:
    """The values of bfloat16 words."""
    return (words.astype(np.uint32) << 16).view(np.float32)
