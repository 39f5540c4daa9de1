"""A mask as a dense tensor of its weight's shape, made as it is read: stored, or still free."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weightsmith.errors import CheckpointError, CompatibilityError
from weightsmith.tensors import DType, FromStored, LazyTensor, Shaped, read_range, shown

# The types that numbers of a mask may be stored in.
MASK_DTYPES = (DType.BOOL, DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32)
# Elements that are spread at a time.
_AT_ONCE = 1 << 16
_Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class StoredMask(FromStored):
    """A stored mask spread over the `shape` of its weight, as float32, each number in [0, 1].

    It has the weight's axes, of its lengths or of length 1, or is a single number. Reading raises CheckpointError for a
    number outside of [0, 1].
    """

    name: str
    shape: tuple[int, ...]
    stored: LazyTensor

    @property
    def dtype(self) -> DType:
        """float32."""
        return DType.FLOAT32

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Write elements [start, stop) as float32; thread-safe."""
        found = np.frombuffer(buffer, np.float32)
        for low in range(start, stop, _AT_ONCE):
            high = min(low + _AT_ONCE, stop)
            at = stored_elements(low, high, self.shape, self.stored.shape)
            first, last = int(at.min()), int(at.max()) + 1
            numbers = read_range(self.stored, first, last)
            if not ((numbers >= 0.0) & (numbers <= 1.0)).all():
                wrong = first + int(np.argmin((numbers >= 0.0) & (numbers <= 1.0)))
                raise CheckpointError(
                    f"{self.location} holds a number outside of [0, 1] at element {wrong}, which no mask has: write it "
                    "again."
                )
            found[low - start : high - start] = numbers[at - first]


class FreeMaskTensor(Shaped):
    """What a free mask has for one weight: `start` everywhere, or what is `held` for now."""

    __slots__ = ("dtype", "held", "location", "mask", "name", "own_shape", "shape", "start")

    def __init__(
        self, mask: str, name: str, shape: tuple[int, ...], own_shape: tuple[int, ...], start: float
    ) -> None:
        self.mask, self.name, self.shape, self.own_shape = mask, name, shape, own_shape
        self.start = start
        self.dtype = DType.FLOAT32
        self.location = f"free mask {mask!r} of {shown(name)}"
        self.held: LazyTensor | None = None

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Write elements [start, stop) as float32; thread-safe."""
        if self.held is None:
            np.frombuffer(buffer, np.float32)[:] = self.start
        else:
            self.held.read_into(start, stop, buffer)


def stored_elements(
    low: int, high: int, shape: tuple[int, ...], stored: tuple[int, ...]
) -> _Integers:
    """Which elements of a mask stored as `stored` the elements [low, high) of a weight of `shape` have."""
    flat = np.arange(low, high, dtype=np.int64)
    if stored == shape:
        return flat
    found = np.zeros_like(flat)
    step, run = 1, 1
    for length, own in zip(reversed(shape), reversed(stored), strict=False):
        if own > 1:
            found += flat // run % length * step
        step, run = step * own, run * length
    return found


def require_fit(
    location: str, dtype: DType, own: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    """Raise CompatibilityError unless a mask of shape `own` can be spread over a weight of `shape`."""
    if dtype not in MASK_DTYPES:
        listed = ", ".join(map(str, MASK_DTYPES))
        raise CompatibilityError(
            f"{location} holds {dtype}, but a mask is one of {listed}: convert it."
        )
    axes = len(own) == len(shape) and all(
        length in (1, other) for length, other in zip(own, shape, strict=True)
    )
    if not axes and math.prod(own) != 1:
        raise CompatibilityError(
            f"{location} has shape {list(own)} for a weight of shape {list(shape)}: a mask has the weight's axes, each "
            "as long or of length 1, or is a single number."
        )
