"""Running a plan on a Ray cluster whose nodes share the storage of the inputs and the output.

The driver owns the staging folder: it makes the shard files, measures model-wide statistics, keeps
the journal and seals. Workers compute batches of tensors straight into the shard files and report
each tensor as it is done, so a worker that dies costs only its unfinished tensors, which go back to
the queue. Every byte is the same as in a local run.
"""

from __future__ import annotations

import importlib.util
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weightsmith.engine.outputs.shards import Shards
from weightsmith.engine.planning.plan import Plan, Store
from weightsmith.engine.records.journal import Journal, TensorRecord
from weightsmith.engine.records.manifest import Manifest
from weightsmith.engine.running.job_facts import JobSettings
from weightsmith.engine.running.progress import Progress, Silence
from weightsmith.engine.running.run import (
    ModelResults,
    begin,
    run,
    write_tensors,
)
from weightsmith.engine.running.scheduler import Scheduler
from weightsmith.errors import ResourceError
from weightsmith.wording import with_extra

_BATCHES_PER_CPU = 4
_ATTEMPTS = 4

Shared = tuple[Plan, str, ModelResults]
Batch = Callable[[Shared, Sequence[str]], Iterator[TensorRecord]]


def run_on_ray(
    plan: Plan,
    out: Path,
    *,
    address: str = "auto",
    force: bool = False,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """As `weightsmith.engine.running.run.run`, with the tensors computed by the workers of a Ray cluster.

    `address` is Ray's ("auto": the cluster of this machine; "local": start one here for this run).
    Raises ResourceError if Ray is not installed or a batch of tensors fails on several workers.
    """
    ray, is_own = _connected(address)
    try:
        compute = Cluster(ray).compute
        return run(plan, out, force=force, fresh=fresh, progress=progress, compute=compute)
    finally:
        if is_own:
            ray.shutdown()


def _connected(address: str) -> tuple[Any, bool]:
    """Ray, and whether it was started here; a session that the caller has opened is used as it is."""
    if importlib.util.find_spec("ray") is None:
        raise ResourceError(
            f"Running on a cluster needs Ray, which is not installed; {with_extra('ray')}."
        )
    import ray

    if ray.is_initialized():
        return ray, False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        quiet["include_dashboard"] = False
    try:
        ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ResourceError(
            f"There is no Ray cluster at {address!r} ({error}); start one with `ray start --head`, or use --ray local."
        ) from error
    return ray, True


@dataclass(slots=True)
class _Task:
    """A batch on a worker: what is left of it, and how often a worker has died of it."""

    left: list[str]
    attempt: int


class Cluster:
    """Computes tensors on the workers of a Ray session; `batch` is what a worker does."""

    def __init__(self, ray: Any, batch: Batch | None = None) -> None:
        self._ray = ray
        self._batch = batch or compute_batch
        errors = ray.exceptions
        self._lost = (
            errors.WorkerCrashedError,
            errors.NodeDiedError,
            errors.OutOfMemoryError,
            errors.ObjectLostError,
        )

    def compute(
        self,
        plan: Plan,
        shards: Store,
        journal: Journal,
        scheduler: Scheduler,
        skip: set[str],
        progress: Progress,
    ) -> dict[str, TensorRecord]:
        """Hand out batches, journal what comes back, and hand out again what a dead worker left."""
        _, results, left = begin(plan, shards, journal, scheduler, skip, progress)
        wanted = [tensor.output.name for tensor in left]
        for name in wanted:
            shards.sink(name, lambda _: None)  # makes the files that workers write into
        workers = max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        queue = deque(_Task(b, 0) for b in batches(plan, wanted, workers * _BATCHES_PER_CPU))
        shared = self._ray.put((replace(plan, threads=1), str(shards.folder), results))
        remote = self._ray.remote(num_cpus=1, max_retries=0, num_returns="streaming")(self._batch)
        records: dict[str, TensorRecord] = {}
        running: dict[Any, _Task] = {}
        try:
            while queue or running:
                while queue and len(running) < workers:
                    task = queue.popleft()
                    running[remote.remote(shared, list(task.left))] = task
                ready, _ = self._ray.wait(list(running), num_returns=1, fetch_local=False)
                for stream in ready:
                    record = self._next(stream, running, queue)
                    if record is not None:
                        records[record.name] = record
                        journal.record(record)
                        shards.tensor_done(record.name)
                        progress.advance(plan.layout.placement(record.name).nbytes, record.name)
        finally:
            # Nobody may write into the staging folder once its lock is given back.
            for stream in running:
                self._ray.cancel(stream, force=True)
        return records

    def _next(
        self, stream: Any, running: dict[Any, _Task], queue: deque[_Task]
    ) -> TensorRecord | None:
        """The next record of a stream; None at its end, or when its worker has died and the rest was queued again."""
        task = running[stream]
        try:
            record: TensorRecord = self._ray.get(next(stream))
        except StopIteration:
            del running[stream]
            return None
        except self._lost as error:
            del running[stream]
            if task.attempt + 1 >= _ATTEMPTS:
                raise ResourceError(
                    f"Workers died {_ATTEMPTS} times while computing tensor {task.left[0]!r}; "
                    "give them more memory, or run locally."
                ) from error
            queue.append(_Task(task.left, task.attempt + 1))
            return None
        except self._ray.exceptions.RayTaskError as error:
            del running[stream]
            raise error.cause from None
        task.left.remove(record.name)
        return record


def batches(plan: Plan, names: Sequence[str], wanted: int) -> list[list[str]]:
    """Split tensors, in their order, into about `wanted` batches of similar size in bytes."""
    sizes = {name: plan.layout.placement(name).nbytes for name in names}
    limit = max(1, sum(sizes.values()) // max(wanted, 1))
    result: list[list[str]] = []
    filled = limit
    for name in names:
        if filled >= limit:
            result.append([])
            filled = 0
        result[-1].append(name)
        filled += sizes[name]
    return result


def compute_batch(shared: Shared, names: Sequence[str]) -> Iterator[TensorRecord]:
    """On a worker: compute tensors into the staging folder, giving each one's record when it is durable there."""
    plan, folder, results = shared
    by_name = {tensor.output.name: tensor for tensor in plan.tensors}
    settings = JobSettings(plan.backend.load(), plan.tile_elements)
    scheduler = Scheduler(plan.threads)
    with Shards(plan.layout, Path(folder), create=False) as shards:
        for name in names:
            done: list[TensorRecord] = []
            write_tensors(
                plan, [by_name[name]], shards, settings, scheduler, results, done.append, Silence()
            )
            shards.sync(name)
            yield done[0]
