"""Running a plan on a Ray cluster whose nodes share the storage of the inputs and the output.

The driver owns the staging folder: it makes the shard files, measures model-wide statistics, keeps the journal and seals. Workers compute
batches of tensors straight into the shard files and report each tensor as it is done, so a worker that dies costs only its unfinished
tensors, which go back to the queue. Every byte is the same as in a local run.
"""

from __future__ import annotations

import importlib.util
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from weightsmith.engine.journal import Journal, TensorRecord
from weightsmith.engine.manifest import Manifest
from weightsmith.engine.output import OutputShards
from weightsmith.engine.plan import Plan
from weightsmith.engine.progress import Progress, Silence
from weightsmith.engine.run import ModelResults, in_file_order, model_results, run, write_tensors
from weightsmith.engine.scheduler import Scheduler
from weightsmith.engine.tensor_job import Settings
from weightsmith.errors import ResourceError

_BATCHES_PER_CPU = 4
_ATTEMPTS = 4


def run_on_ray(
    plan: Plan,
    out: Path,
    *,
    address: str = "auto",
    force: bool = False,
    fresh: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """As `weightsmith.engine.run.run`, with the tensors computed by the workers of a Ray cluster.

    `address` is Ray's ("auto": the cluster of this machine; "local": start one here for this run). Raises ResourceError if Ray is
    not installed or a batch of tensors fails on several workers.
    """
    ray = _connected(address)
    try:
        return run(plan, out, force=force, fresh=fresh, progress=progress, compute=_Cluster(ray).compute)
    finally:
        if address == "local":
            ray.shutdown()


def _connected(address: str) -> Any:
    if importlib.util.find_spec("ray") is None:
        raise ResourceError("Running on a cluster needs Ray, which is not installed: `pip install weightsmith[ray]`.")
    import ray

    if not ray.is_initialized():
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ResourceError(
                f"There is no Ray cluster at {address!r} ({error}); start one with `ray start --head`, or use --ray local."
            ) from error
    return ray


class _Cluster:
    def __init__(self, ray: Any) -> None:
        self._ray = ray

    def compute(
        self,
        plan: Plan,
        shards: OutputShards,
        journal: Journal,
        scheduler: Scheduler,
        skip: set[str],
        progress: Progress,
    ) -> dict[str, TensorRecord]:
        """Hand out batches, journal what comes back, and hand out again what a dead worker left."""
        settings = Settings(plan.backend.load(), plan.tile_elements)
        results = model_results(plan, settings, scheduler, skip, progress)
        shards.create_all()
        wanted = [t.output.name for t in in_file_order(plan) if t.output.name not in skip]
        workers = max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        queue = deque((batch, 0) for batch in batches(plan, wanted, workers * _BATCHES_PER_CPU))
        shared = self._ray.put((replace(plan, threads=1), str(shards.folder), results))
        remote = self._ray.remote(num_cpus=1, max_retries=0)(compute_batch)
        records: dict[str, TensorRecord] = {}
        running: dict[Any, tuple[Any, list[str], int]] = {}
        while queue or running:
            while queue and len(running) < workers:
                names, attempt = queue.popleft()
                stream = remote.options(num_returns="streaming").remote(shared, names)
                running[stream] = (stream, list(names), attempt)
            ready, _ = self._ray.wait(list(running), num_returns=1, fetch_local=False)
            for stream in ready:
                self._take(running, stream, queue, records, journal, shards, plan, progress)
        return records

    def _take(
        self,
        running: dict[Any, tuple[Any, list[str], int]],
        stream: Any,
        queue: deque[tuple[list[str], int]],
        records: dict[str, TensorRecord],
        journal: Journal,
        shards: OutputShards,
        plan: Plan,
        progress: Progress,
    ) -> None:
        _, left, attempt = running[stream]
        try:
            record: TensorRecord = self._ray.get(next(stream))
        except StopIteration:
            del running[stream]
        except (self._ray.exceptions.WorkerCrashedError, self._ray.exceptions.NodeDiedError) as error:
            del running[stream]
            if attempt + 1 >= _ATTEMPTS:
                raise ResourceError(
                    f"Workers died {_ATTEMPTS} times while computing tensor {left[0]!r}; give them more memory, or run locally."
                ) from error
            queue.append((left, attempt + 1))
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        else:
            left.remove(record.name)
            records[record.name] = record
            journal.record(record)
            shards.tensor_done(record.name)
            progress.advance(plan.layout.placement(record.name).nbytes, record.name)


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


def compute_batch(shared: tuple[Plan, str, ModelResults], names: Sequence[str]) -> Iterator[TensorRecord]:
    """On a worker: compute tensors into the shared staging folder, giving each one's record when it is durable there."""
    plan, folder, results = shared
    by_name = {tensor.output.name: tensor for tensor in plan.tensors}
    settings = Settings(plan.backend.load(), plan.tile_elements)
    scheduler = Scheduler(plan.threads)
    with OutputShards(plan.layout, Path(folder)) as shards:
        for name in names:
            done: list[TensorRecord] = []
            write_tensors(plan, [by_name[name]], shards, settings, scheduler, results, done.append, Silence())
            shards.sync(name)
            yield done[0]
