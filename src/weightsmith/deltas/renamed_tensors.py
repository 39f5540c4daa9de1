"""A tensor under another name."""

from __future__ import annotations

from dataclasses import dataclass, replace

from weightsmith.tensors import FromStored, LazyTensor, StoredTensor


@dataclass(frozen=True, slots=True, eq=False)
class RenamedTensor(FromStored):
    """A `LazyTensor` that reads as another and has a name of its own."""

    name: str
    stored: LazyTensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        return self.stored.shape

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Read elements [start, stop); thread-safe. Raises what the other tensor raises."""
        self.stored.read_into(start, stop, buffer)


def renamed(tensor: LazyTensor, name: str) -> LazyTensor:
    """The same tensor under another name; one that lies in a file stays one."""
    if isinstance(tensor, StoredTensor):
        return replace(tensor, name=name)
    return RenamedTensor(name, tensor)
