"""Running a plan: resume, compute every tensor into its place, check, seal."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from weightsmith.engine import manifest as manifests
from weightsmith.engine.assertions import check_assertions
from weightsmith.engine.coded_job import CodedPart, compute_parts
from weightsmith.engine.copy_job import copy_tensor
from weightsmith.engine.journal import Journal, TensorRecord
from weightsmith.engine.manifest import Manifest
from weightsmith.engine.model_scope import resolve_model_scope
from weightsmith.engine.nonfinite import check_finite, located
from weightsmith.engine.output import OutputShards
from weightsmith.engine.plan import Plan, require_runnable
from weightsmith.engine.planned_tensors import Action, PlannedTensor
from weightsmith.engine.progress import Progress, Silence
from weightsmith.engine.scheduler import Job, Scheduler
from weightsmith.engine.scratch import Scratch
from weightsmith.engine.seal import seal
from weightsmith.engine.staging import Staging
from weightsmith.engine.state import check_continued, note_state
from weightsmith.engine.tensor_job import Finished, Settings, TensorJob
from weightsmith.engine.tiles import digest_rounds
from weightsmith.engine.trace import Member, Traced, Tracer
from weightsmith.errors import (
    OutputError,
    ResourceError,
    VerificationError,
    WeightsmithError,
)
from weightsmith.publishing.earlier import check_free
from weightsmith.publishing.places import check_place
from weightsmith.publishing.records import manifest_problem
from weightsmith.recipes.formula import distinct_leaves
from weightsmith.tensors.graph import Value
from weightsmith.tensors.open_files import OPEN_FILES
from weightsmith.wording import advice_on, counted, shown

_EXHAUSTED = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
)

ModelResults = Mapping[Member, Any]
Compute = Callable[
    [Plan, OutputShards, Journal, Scheduler, set[str], Progress], dict[str, TensorRecord]
]


def run(
    plan: Plan,
    out: Path,
    *,
    force: bool = False,
    fresh: bool = False,
    progress: Progress | None = None,
    expected: Mapping[str, str] | None = None,
    sources: Mapping[str, Mapping[str, str]] | None = None,
    compute: Compute | None = None,
    reads: Sequence[Path] = (),
) -> Manifest:
    """Write the output of a plan, continuing an interrupted run of the same plan if there is one.

    `force` replaces an earlier output of weightsmith; `fresh` discards an interrupted run. With
    `expected`, tensors must come out with these digests; with `sources`, what is read of a
    checkpoint must have these digests, by reference and tensor, where one is given. `compute` does
    the work (default: threads of this process). `reads` are places that the caller reads beside the
    plan's inputs: no output is put there. The output folder appears whole or not at all, and
    if an interrupted run of the plan had published it already, there is nothing to do but to tidy
    up. A plan whose result is an adapter is run by `adapter_run`. Raises RecipeError if the plan
    has errors, OutputError, ResourceError, CheckpointError, NonFiniteError, AssertionFailed or
    VerificationError.
    """
    require_runnable(plan)
    try:
        out = check_place(out, (*plan.inputs, *reads))
        if plan.adapter is not None:
            from weightsmith.engine.adapter_run import run_adapter

            return run_adapter(
                plan, out, force=force, progress=progress, expected=expected, sources=sources
            )
        telling = progress or Silence()
        with Staging(out) as staging:
            if not fresh and staging.published_plan() == plan.digest:
                staging.tidy()
                staging.discard()
                return manifests.read(out)
            if force and out.exists():
                telling.stage("comparing what is to be replaced with its record")
            earlier = check_free(out, manifest_problem, force=force)
            journal = staging.begin(plan.digest, fresh)
            staging.check_space(plan.write_bytes)
            work = compute or compute_tensors
            records = _write_tensors(plan, staging, journal, telling, work)
            check_expected({name: record.digest for name, record in records.items()}, expected)
            _check_sources(plan, records, sources or {})
            manifest = seal(plan, records, staging, journal)
            staging.publish(earlier)
            return manifest
    except OSError as error:
        raise described(error, out) from error
    except MemoryError as error:
        raise ResourceError(
            "The merge ran out of memory; give it less to work with (a smaller `memory`, fewer `threads`) "
            "or free some, then give the same command again."
        ) from error
    finally:
        OPEN_FILES.close()


def described(error: OSError, out: Path) -> WeightsmithError:
    """The sentence for a system call that failed while `out` was being made."""
    reason = error.strerror or str(error)
    where = f" on {shown(error.filename)}" if error.filename else ""
    failed = f"A system call{where} failed while {shown(out)} was being made ({reason})"
    if error.errno in _EXHAUSTED:
        return ResourceError(
            f"{failed}; free some space or raise the limit, then give the same command again."
        )
    return OutputError(f"{failed}; {advice_on(error)}, then give the same command again.")


def _write_tensors(
    plan: Plan, staging: Staging, journal: Journal, progress: Progress, compute: Compute
) -> dict[str, TensorRecord]:
    scheduler = Scheduler(plan.threads, plan.window)
    with OutputShards(plan.layout, staging.checkpoint) as shards:
        records = resumable(plan, journal, shards, scheduler)
        done = sum(plan.layout.placement(name).nbytes for name in records)
        progress.start(plan.layout.total_size, done)
        records |= compute(plan, shards, journal, scheduler, set(records), progress)
        check_assertions(plan, shards, scheduler, progress)
        progress.stage("sealing")
        shards.finish()
    return records


def check_expected(digests: Mapping[str, str], expected: Mapping[str, str] | None) -> None:
    """Raise VerificationError where tensors did not come out as expected."""
    if expected is None:
        return
    names = expected.keys() | digests.keys()
    different = sorted(n for n in names if digests.get(n) != expected.get(n))
    if different:
        raise VerificationError(
            f"The result differs from the record in {len(different)} of {counted(len(names), 'tensor')}, "
            f"the first being {different[0]!r}; "
            "an input was changed, or another version or backend wrote the record. The output was not sealed."
        )


def _check_sources(
    plan: Plan, records: Mapping[str, TensorRecord], sources: Mapping[str, Mapping[str, str]]
) -> None:
    for tensor in plan.tensors:
        digests = records[tensor.output.name].source_digests
        for leaf, digest in zip(distinct_leaves(tensor.output.formula), digests, strict=True):
            source = plan.resolved.checkpoints[leaf.checkpoint].source
            check_source(source, leaf.tensor, digest, sources)


def check_source(
    source: str, tensor: str, digest: str, sources: Mapping[str, Mapping[str, str]]
) -> None:
    """Raise VerificationError where a tensor of an input is not the one on record."""
    if sources.get(source, {}).get(tensor, digest) != digest:
        raise VerificationError(
            f"Tensor {tensor!r} of the input {source!r} is not the one on record; give the input that was merged. The "
            "output was not sealed."
        )


def resumable(
    plan: Plan, journal: Journal, shards: OutputShards, scheduler: Scheduler
) -> dict[str, TensorRecord]:
    """Tensors that an earlier run finished and whose bytes still have the recorded digest."""
    finished = journal.finished()
    found: dict[str, TensorRecord] = {}

    def check(name: str, record: TensorRecord) -> Job:
        if (yield from digest_rounds(shards.stored(name), plan.tile_elements)) == record.digest:
            found[name] = record

    scheduler.run(check(n, r) for n, r in finished.items() if shards.has(n))
    return found


def compute_tensors(
    plan: Plan,
    shards: OutputShards,
    journal: Journal,
    scheduler: Scheduler,
    skip: set[str],
    progress: Progress,
) -> dict[str, TensorRecord]:
    """Compute every tensor that is not in `skip` with the threads of this process, write it and record it."""
    settings = Settings(plan.backend.load(), plan.tile_elements, Scratch(shards.folder))
    results = model_results(plan, settings, scheduler, skip, progress)
    note_state(plan, results, journal)
    records: dict[str, TensorRecord] = {}

    def done(record: TensorRecord) -> None:
        records[record.name] = record
        journal.record(record)

    wanted = [t for t in in_file_order(plan) if t.output.name not in skip]
    write_tensors(plan, wanted, shards, settings, scheduler, results, done, progress)
    return records


def write_tensors(
    plan: Plan,
    tensors: Iterable[PlannedTensor],
    shards: OutputShards,
    settings: Settings,
    scheduler: Scheduler,
    results: ModelResults,
    done: Callable[[TensorRecord], None],
    progress: Progress,
) -> None:
    """Compute tensors into their places; `done` is told of each."""
    tracer = Tracer()

    def write_parts(parts: Sequence[PlannedTensor]) -> Job:
        jobs = []
        for part in parts:
            name = part.output.name
            job = tensor_job(plan, part, settings, tracer)
            job.adopt(results)
            placed = shards.sink(name, partial(progress.advance, tensor=name))
            jobs.append(CodedPart(job, part.output, placed, shards.written(name)))
        for part, finished in zip(parts, (yield from compute_parts(jobs)), strict=True):
            check_finite(plan, part, finished)
            shards.tensor_done(part.output.name)
            done(_record(part, finished))

    def write(tensor: PlannedTensor) -> Job:
        name = tensor.output.name
        sink = shards.sink(name, lambda nbytes: progress.advance(nbytes, name))
        if tensor.action is Action.COMPUTE:
            job = tensor_job(plan, tensor, settings, tracer)
            job.adopt(results)
            finished: Finished = yield from job.compute(tensor.output.dtype, sink)
            check_finite(plan, tensor, finished)
            check_continued(plan, tensor, _record(tensor, finished))
        else:
            stored = [plan.leaf(leaf) for leaf in distinct_leaves(tensor.output.formula)]
            finished = yield from copy_tensor(stored, sink, settings.tile_elements)
        shards.tensor_done(name)
        done(_record(tensor, finished))

    with located(plan, settings):
        scheduler.run(
            write(group[0]) if group[0].output.part_of is None else write_parts(group)
            for group in _by_tensor(tensors)
        )


def _by_tensor(tensors: Iterable[PlannedTensor]) -> list[list[PlannedTensor]]:
    """Tensors in their order, the parts of one tensor together."""
    groups: dict[str, list[PlannedTensor]] = {}
    for tensor in tensors:
        output = tensor.output
        key = output.name if output.part_of is None else f"{output.part_of}::"
        groups.setdefault(key, []).append(tensor)
    return list(groups.values())


def _record(tensor: PlannedTensor, finished: Finished) -> TensorRecord:
    digests = finished.source_digests
    return TensorRecord(
        tensor.output.name, finished.digest, tuple(digests[i] for i in sorted(digests))
    )


def in_file_order(plan: Plan) -> Iterable[PlannedTensor]:
    """Tensors in the order of their bytes in the output, so that shards fill one after the other."""
    by_name = {tensor.output.name: tensor for tensor in plan.tensors}
    return (
        by_name[placement.name] for shard in plan.layout.shards for placement in shard.placements
    )


def tensor_job(plan: Plan, tensor: PlannedTensor, settings: Settings, tracer: Tracer) -> TensorJob:
    """The job of one computed tensor."""
    traced = tracer.trace(tensor.output)
    return _job(plan, tensor, settings, traced, traced.output)


def _job(
    plan: Plan, tensor: PlannedTensor, settings: Settings, traced: Traced, graph: Value
) -> TensorJob:
    sources = [plan.leaf(leaf) for leaf in traced.sources]
    name, shape = tensor.output.name, tensor.output.shape
    members = dict(traced.members)
    return TensorJob(name, shape, graph, sources, settings, members, wide=tensor.wide)


def model_results(
    plan: Plan, settings: Settings, scheduler: Scheduler, skip: set[str], progress: Progress
) -> ModelResults:
    """Statistics of the whole model; finished tensors take part, since the statistics need them.

    So do tensors of recipes inside the recipe that no output is made of. Tied tensors count once.
    """
    concerned = [t for t in plan.tensors if t.action is Action.COMPUTE and t.model_scope]
    if not concerned or all(t.output.name in skip for t in concerned):
        return {}
    progress.stage("measuring statistics of the whole model")
    tracer = Tracer()
    sites: dict[str, list[PlannedTensor]] = {}
    for tensor in (*concerned, *plan.measured):
        if tensor.output.tied_to is None:
            sites.setdefault(tensor.output.site, []).append(tensor)
    jobs = [_statistics_job(plan, parts, settings, tracer) for parts in sites.values()]
    with located(plan, settings):
        resolve_model_scope(jobs, scheduler, plan.resolved.equal_magnitudes)
    return {member: found for job in jobs for member, found in job.model_results().items()}


def _statistics_job(
    plan: Plan, parts: Sequence[PlannedTensor], settings: Settings, tracer: Tracer
) -> TensorJob:
    """A job with all that the parts of one tensor measure."""
    first, *others = [_measuring_job(plan, tensor, settings, tracer) for tensor in parts]
    for other in others:
        first.output = first.output + other.output
        first.members.update(other.members)
    return first


def _measuring_job(
    plan: Plan, tensor: PlannedTensor, settings: Settings, tracer: Tracer
) -> TensorJob:
    traced = tracer.trace(tensor.output)
    return _job(plan, tensor, settings, traced, traced.measured)
