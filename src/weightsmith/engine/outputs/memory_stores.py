"""Stores that keep tensors in memory: all of them, or only what their digests need."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from weightsmith.engine.outputs.made_tensors import MadeTensor
from weightsmith.engine.outputs.storage import Sink
from weightsmith.engine.records.journal import TensorRecord
from weightsmith.progress import Progress
from weightsmith.tensors import LazyTensor, MemorySink, MemoryTensor, Placement, ShardLayout

_Self = TypeVar("_Self", bound="MemoryStore")


def _empty(placement: Placement) -> MemoryTensor:
    name = placement.name
    return MemoryTensor.empty(name, placement.dtype, placement.shape, f"merged tensor {name!r}")


class MemoryStore:
    """A `Store` in memory; with `lazy` a tensor takes its room when it is begun, else all do at once, in file order."""

    def __init__(self, layout: ShardLayout, *, lazy: bool = False) -> None:
        self.folder = Path(tempfile.gettempdir())
        self._layout = layout
        placements = () if lazy else (p for shard in layout.shards for p in shard.placements)
        self.tensors = {placement.name: _empty(placement) for placement in placements}

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing has to be closed."""

    def has(self, name: str) -> bool:
        """Never: memory ends with its process."""
        return False

    def make_without_reading(self, progress: Progress) -> set[str]:
        """Nothing: every tensor is computed."""
        return set()

    def sink(self, name: str, advance: Callable[[int], None]) -> Sink:
        """What fills a tensor."""
        if name not in self.tensors:
            self.tensors[name] = _empty(self._layout.placement(name))
        return MemorySink(self.tensors[name], advance)

    def stored(self, name: str) -> LazyTensor:
        """A finished tensor."""
        return self.tensors[name]

    def written(self, name: str) -> LazyTensor:
        """A finished tensor."""
        return self.tensors[name]

    def tensor_done(self, name: str) -> None:
        """Nothing has to be made durable."""

    def finish(self) -> None:
        """Nothing has to be made durable."""

    def digests(self, records: Mapping[str, TensorRecord]) -> dict[str, str]:
        """Those that were taken while the tensors were written."""
        return {name: record.digest for name, record in records.items()}


class DigestStore(MemoryStore):
    """Keeps no bytes of tensors whose digest comes from the tiles, and of coded ones until they are digested."""

    def __init__(self, layout: ShardLayout, tensors: Mapping[str, MadeTensor]) -> None:
        super().__init__(layout, lazy=True)
        self._made = tensors

    def sink(self, name: str, advance: Callable[[int], None]) -> Sink:
        """What drops the bytes, or keeps those of a coded tensor."""
        return _NOWHERE if self._made[name].storage.is_plain else super().sink(name, advance)

    def tensor_done(self, name: str) -> None:
        """Let go of a tensor."""
        self.tensors.pop(name, None)


class _Nowhere:
    def write(self, start: int, data: memoryview) -> None:
        """Drop the bytes."""


_NOWHERE = _Nowhere()
