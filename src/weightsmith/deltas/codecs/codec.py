"""What a codec of one tensor's change is: what it stores, what it may be asked for, and how it is read again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from weightsmith.errors import CheckpointError
from weightsmith.tensors import DType, LazyTensor, MemoryTensor, shown

if TYPE_CHECKING:
    from weightsmith.deltas.codecs.delta_codec import Delta

Parameters = Mapping[str, Any]
_PART_DTYPES: dict[np.dtype[Any], DType] = {
    np.dtype(np.uint8): DType.UINT8,
    np.dtype(np.uint32): DType.UINT32,
    np.dtype(np.float16): DType.FLOAT16,
    np.dtype(np.float32): DType.FLOAT32,
}
_NUMPY_DTYPES: dict[DType, np.dtype[Any]] = {dtype: array for array, dtype in _PART_DTYPES.items()}


@dataclass(frozen=True, slots=True)
class CodecChoice:
    """A codec and what it is asked for: a rank, a density, bits per element."""

    codec: str
    settings: Parameters = field(default_factory=dict)

    def __str__(self) -> str:
        listed = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        return f"{self.codec} ({listed})" if listed else self.codec


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """What is stored for one tensor: the codec, the small facts that decoding needs (JSON), and arrays by part.

    Parts are uint8, uint32, float16 or float32 arrays of any shape.
    """

    codec: str
    parameters: Parameters = field(default_factory=dict)
    parts: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.parts.values())


@dataclass(frozen=True, slots=True, eq=False)
class StoredChange:
    """One encoded tensor as it is read: its parts in files, the base, and the tensor that comes out."""

    codec: str
    parameters: Parameters
    parts: Mapping[str, LazyTensor]
    base: LazyTensor | None
    name: str
    dtype: DType
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements that come out."""
        return math.prod(self.shape)

    @property
    def location(self) -> str:
        """Where the change lies, for messages."""
        first = next(iter(self.parts.values()), self.base)
        return f"tensor {shown(self.name)}" if first is None else first.location

    def part(self, name: str, dtype: DType, shape: tuple[int | None, ...]) -> LazyTensor:
        """A part, which must have this dtype and shape (None is any length). Raises CheckpointError otherwise."""
        found = self.parts.get(name)
        if found is None:
            raise self.damaged(f"has no part {name!r}")
        fits = len(found.shape) == len(shape) and all(
            wanted in (None, length) for wanted, length in zip(shape, found.shape, strict=True)
        )
        if found.dtype is not dtype or not fits:
            wanted_shape = tuple("any" if length is None else length for length in shape)
            raise self.damaged(
                f"has a part {name!r} of {found.dtype} {list(found.shape)} where {dtype} {list(wanted_shape)} is due"
            )
        return found

    def array(self, name: str, dtype: DType, shape: tuple[int | None, ...]) -> NDArray[Any]:
        """A small part, whole. Raises CheckpointError for another dtype or shape, and for NaN or infinite numbers."""
        part = self.part(name, dtype, shape)
        found = read_array(part)
        if dtype.is_float and not np.isfinite(found).all():
            raise self.damaged(f"has a number in {name!r} that is not finite")
        return found

    def integer(self, key: str, low: int, high: int) -> int:
        """A whole number among the parameters. Raises CheckpointError if it is none or outside [low, high]."""
        value = self.parameters.get(key)
        if type(value) is not int or not low <= value <= high:
            raise self.damaged(
                f"has {shown(value)} as {key!r}, not a whole number of {low} to {high}"
            )
        return value

    def choice(self, key: str, among: Sequence[str]) -> str:
        """A word among the parameters. Raises CheckpointError if it is another."""
        value = self.parameters.get(key)
        if not isinstance(value, str) or value not in among:
            raise self.damaged(f"has {shown(value)} as {key!r}, not one of {', '.join(among)}")
        return value

    def unfit(self) -> CheckpointError:
        """The error that says that the base is missing or of another form."""
        if self.base is None:
            return self.damaged("needs a base that is not there")
        return self.damaged(
            f"is of {self.dtype} {list(self.shape)}, which a base of {self.base.dtype} {list(self.base.shape)} does "
            "not fit"
        )

    def damaged(self, what: str) -> CheckpointError:
        """The error that says what is wrong with the stored change."""
        return CheckpointError(
            f"The {shown(self.codec)[1:-1]} change of tensor {shown(self.name)} ({self.location}) {what}: it is "
            "damaged, fetch it or make it again."
        )


class Codec(Protocol):
    """One way of storing a change."""

    @property
    def name(self) -> str:
        """What it is called in a package."""
        ...

    def choices(self, delta: Delta) -> Sequence[CodecChoice]:
        """What is worth trying on this change, from few bytes to many; nothing where the codec does not fit."""
        ...

    def encode(self, delta: Delta, settings: Parameters) -> Encoded:
        """The change in this codec; it must be finite and not empty. Raises UsageError for bad settings."""
        ...

    def decoded(self, stored: StoredChange) -> LazyTensor:
        """The tensor, decoded while it is read. Raises CheckpointError for parts that do not fit, here or then."""
        ...


def read_array(tensor: LazyTensor) -> NDArray[Any]:
    """A stored part as an array, whole."""
    found: NDArray[Any] = np.empty(tensor.shape, _NUMPY_DTYPES[tensor.dtype])
    if found.size:
        tensor.read_into(0, tensor.numel, found.reshape(-1).data.cast("B"))
    return found


def part_in_memory(name: str, array: NDArray[Any]) -> MemoryTensor:
    """A part of a change as a tensor."""
    dtype = _PART_DTYPES[array.dtype]
    return MemoryTensor.of(name, dtype, array, f"part {shown(name)} in memory")
