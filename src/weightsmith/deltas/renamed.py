"""A tensor under another name."""

from __future__ import annotations

from dataclasses import dataclass, replace

from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.stored import LazyTensor, StoredTensor


@dataclass(frozen=True, slots=True, eq=False)
class RenamedTensor:
    """A `LazyTensor` that reads as another and has a name of its own."""

    name: str
    stored: LazyTensor

    @property
    def dtype(self) -> DType:
        """The type of the elements."""
        return self.stored.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return self.stored.shape

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.stored.numel

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return self.stored.nbytes

    @property
    def location(self) -> str:
        """File and tensor, for messages."""
        return self.stored.location

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Read elements [start, stop); thread-safe. Raises what the other tensor raises."""
        self.stored.read_into(start, stop, buffer)


def renamed(tensor: LazyTensor, name: str) -> LazyTensor:
    """The same tensor under another name; one that lies in a file stays one."""
    if isinstance(tensor, StoredTensor):
        return replace(tensor, name=name)
    return RenamedTensor(name, tensor)
