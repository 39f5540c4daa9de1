"""Stand-ins for inputs whose weights are gone: enough of a header to resolve a recipe, and nothing to read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from weightsmith.checkpoints import Checkpoint, assemble
from weightsmith.errors import CheckpointError
from weightsmith.tensors import DType, Shaped


@dataclass(frozen=True, slots=True)
class PlaceholderTensor(Shaped):
    """A `LazyTensor` that cannot be read."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    location: str

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Refuse: raises CheckpointError."""
        raise CheckpointError(f"{self.location} is gone; give the checkpoint it belongs to.")


def placeholder(reference: str, names: Iterable[str], known: Sequence[Checkpoint]) -> Checkpoint:
    """A checkpoint with tensors of these names, in the dtype and shape that the first of `known` with one of that name
    has.

    Raises CheckpointError for a name that none of them has.
    """
    tensors = {}
    for name in names:
        like = next((c.tensors[name] for c in known if name in c.tensors), None)
        if like is None:
            raise CheckpointError(
                f"{reference!r} is gone, and nothing else tells the shape of its tensor {name!r}; give that input."
            )
        location = f"tensor {name!r} of {reference!r}"
        tensors[name] = PlaceholderTensor(name, like.dtype, like.shape, location)
    return assemble(tensors, known[0].config, path=Path(reference), source=reference)
