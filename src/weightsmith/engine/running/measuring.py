"""Measuring stored tensors: reductions over groups of one shape, by the value graph, as merges measure theirs.

What is asked for is a graph over `source(i)`, the i-th tensor of a group. Tensors are streamed tile by tile on threads,
in as many passes as the graph needs; a thread holds a tile of each tensor of one group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from weightsmith.engine.outputs.storage import Target
from weightsmith.engine.planning.backends import choose_backend
from weightsmith.engine.planning.tiles import plain_round
from weightsmith.engine.running.job_facts import JobSettings
from weightsmith.engine.running.scheduler import Job, Rounds, Scheduler, Worker
from weightsmith.engine.running.tensor_job import TensorJob
from weightsmith.graph import Scalar, source, work_dtype
from weightsmith.tensors import LazyTensor, thread_count

Item = TypeVar("Item")

_TILE = 1 << 18


@dataclass(frozen=True, slots=True)
class MeasuredGroup:
    """The results of reductions by what they were asked as, and the digests of the tensors, all of which were read."""

    values: Mapping[str, float]
    digests: tuple[str, ...]


def measure_each(
    items: Iterable[Item], measurement: Callable[[Item, JobSettings], Rounds], threads: int | None
) -> list[Any]:
    """What a measurement, a part of a job, gives for every item, in their order; on all cores by default."""
    settings = JobSettings(choose_backend().load(), _TILE)
    listed = list(items)
    found: dict[int, Any] = {}

    def job(place: int) -> Job:
        found[place] = yield from measurement(listed[place], settings)

    Scheduler(thread_count(threads)).run(job(place) for place in range(len(listed)))
    return [found[place] for place in range(len(listed))]


def measure_group(
    tensors: Sequence[LazyTensor], asked: Mapping[str, Scalar], settings: JobSettings
) -> Rounds:
    """The `MeasuredGroup` of tensors of one shape."""
    first = tensors[0]
    graphs = tuple(asked.values())
    job = TensorJob(first.name, first.shape, graphs, list(tensors), settings)
    yield from job.resolve()
    # What took the place of matrix methods is in the job's own graphs.
    values = [float(job.known[reduction]) for reduction in job.outputs]
    digests = yield from job.digest_sources()
    return MeasuredGroup(dict(zip(asked, values, strict=True)), digests)


def count_differing(a: LazyTensor, b: LazyTensor, settings: JobSettings) -> Rounds:
    """How many elements of two tensors of one shape differ in their bytes: all of them where dtypes do."""
    if a.dtype is not b.dtype:
        return a.numel
    itemsize = a.dtype.itemsize

    def run(worker: Worker, start: int, count: int) -> int:
        data = [worker.buffer(slot, count * itemsize) for slot in range(2)]
        for tensor, buffer in zip((a, b), data, strict=True):
            tensor.read_into(start, start + count, buffer)
        one, other = (np.frombuffer(d, np.uint8).reshape(count, itemsize) for d in data)
        return int(np.count_nonzero((one != other).any(axis=1)))

    found = yield plain_round(run, a.shape, settings.tile_elements)
    return sum(found)


def count_nonfinite(tensor: LazyTensor, settings: JobSettings) -> Rounds:
    """How many elements of a tensor are NaN or infinite, and the flat index of the first (-1 for none)."""
    if not tensor.dtype.is_float:
        return 0, -1
    job = TensorJob(tensor.name, tensor.shape, (source(0),), [tensor], settings)
    (finished,) = yield from job.compute([Target(work_dtype([tensor.dtype]), _Nowhere())])
    return finished.nonfinite


class _Nowhere:
    """A sink that keeps nothing."""

    def write(self, start: int, data: memoryview) -> None:
        """Drop the bytes."""
