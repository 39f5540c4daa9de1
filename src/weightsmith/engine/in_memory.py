"""A plan's tensors computed into memory, for those who use a result without keeping it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsmith.engine.assertions import check_assertions
from weightsmith.engine.journal import Journal
from weightsmith.engine.output import OutputShards
from weightsmith.engine.plan import Plan, require_runnable
from weightsmith.engine.progress import Progress, Silence
from weightsmith.engine.run import compute_tensors
from weightsmith.engine.scheduler import Scheduler
from weightsmith.engine.tensor_job import Sink
from weightsmith.errors import RecipeError, ResourceError
from weightsmith.tensors.digests import checkpoint_digest
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.layout import Placement, ShardLayout
from weightsmith.tensors.open_files import OPEN_FILES
from weightsmith.tensors.stored import LazyTensor, Shaped
from weightsmith.vocabularies.papers import Papers


@dataclass(frozen=True, slots=True, eq=False)
class MemoryTensor(Shaped):
    """A `LazyTensor` whose bytes are in memory."""

    name: str
    dtype: DType
    shape: tuple[int, ...]
    data: bytearray

    @property
    def location(self) -> str:
        """The tensor, for messages."""
        return f"merged tensor {self.name!r}"

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Copy elements [start, stop)."""
        size = self.dtype.itemsize
        memoryview(buffer).cast("B")[:] = memoryview(self.data)[start * size : stop * size]


@dataclass(frozen=True, slots=True, eq=False)
class InMemoryMerge:
    """What a merge would have written: tensors, the papers beside them, and the digest of the weights."""

    tensors: Mapping[str, MemoryTensor]
    papers: Papers
    digest: str


def merge_in_memory(plan: Plan, progress: Progress | None = None) -> InMemoryMerge:
    """Compute a plan as `run` does, with the same bytes, checks and assertions, but write no file.

    Memory holds the whole result. Raises RecipeError for a plan with errors or one of a task bundle, NonFiniteError,
    AssertionFailed, and ResourceError where memory runs out.
    """
    require_runnable(plan)
    if plan.adapter is not None:
        raise RecipeError(
            "The recipe makes an adapter, which is no model of its own: merge it into a folder and give BASE+FOLDER."
        )
    if plan.resolved.bundle is not None:
        raise RecipeError(
            "The recipe makes a task bundle, which is several models: merge it into a folder and give one of "
            "them as FOLDER#TASK."
        )
    assert plan.papers is not None
    telling = progress or Silence()
    try:
        shards = MemoryShards(plan.layout)
        telling.start(plan.layout.total_size, 0)
        scheduler = Scheduler(plan.threads, plan.window)
        records = compute_tensors(plan, shards, Forgotten(), scheduler, set(), telling)
        check_assertions(plan, shards, scheduler, telling)
    except MemoryError as error:
        raise ResourceError(
            f"The merged tensors ({plan.layout.total_size} bytes) do not fit into memory; merge into a folder and "
            "give that."
        ) from error
    finally:
        OPEN_FILES.close()
    digest = checkpoint_digest({name: record.digest for name, record in records.items()})
    return InMemoryMerge(shards.tensors, plan.papers, digest)


class Forgotten(Journal):
    """The journal of a run that cannot be continued."""

    def __init__(self) -> None:
        self.entries = []

    def append(self, entry: dict[str, Any]) -> None:
        """Keep no record."""


@dataclass(frozen=True, slots=True)
class _MemorySink:
    tensor: MemoryTensor
    advance: Callable[[int], None]

    def write(self, start: int, data: memoryview) -> None:
        """Take the bytes that begin at element `start`."""
        at = start * self.tensor.dtype.itemsize
        memoryview(self.tensor.data)[at : at + data.nbytes] = data.cast("B")
        self.advance(data.nbytes)


def _empty(placement: Placement) -> MemoryTensor:
    return MemoryTensor(
        placement.name, placement.dtype, placement.shape, bytearray(placement.nbytes)
    )


class MemoryShards(OutputShards):
    """The tensors of an output in memory, in the order of the files; with `lazy`, from when they are written on."""

    def __init__(self, layout: ShardLayout, *, lazy: bool = False) -> None:
        super().__init__(layout, Path(tempfile.gettempdir()))
        placements = {p.name: p for shard in layout.shards for p in shard.placements}
        self.placements = placements
        self.tensors = {} if lazy else {name: _empty(p) for name, p in placements.items()}

    def has(self, name: str) -> bool:
        return False

    def sink(self, name: str, advance: Callable[[int], None]) -> Sink:
        if name not in self.tensors:
            self.tensors[name] = _empty(self.placements[name])
        return _MemorySink(self.tensors[name], advance)

    def taken(self, name: str) -> MemoryTensor:
        """A finished tensor, which is held no longer."""
        return self.tensors.pop(name)

    def stored(self, name: str) -> LazyTensor:
        return self.tensors[name]

    def written(self, name: str) -> LazyTensor:
        return self.tensors[name]

    def tensor_done(self, name: str) -> None:
        """Nothing has to be made durable."""
