"""Running a plan: resume, compute every tensor into its place, check, seal."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from weightsmith.engine.outputs.storage import Target
from weightsmith.engine.planning.plan import OneFile, Plan, Store, require_runnable
from weightsmith.engine.planning.planned_tensors import Action, PlannedTensor
from weightsmith.engine.planning.tiles import digest_rounds
from weightsmith.engine.planning.trace import StatisticMember, Traced
from weightsmith.engine.records import manifest as manifests
from weightsmith.engine.records.journal import Forgotten, Journal, TensorRecord
from weightsmith.engine.records.manifest import Manifest, Merged
from weightsmith.engine.records.merge_staging import Staging
from weightsmith.engine.records.recording import build
from weightsmith.engine.records.seal import seal
from weightsmith.engine.records.state import check_continued, note_state
from weightsmith.engine.running.assertions import check_assertions
from weightsmith.engine.running.copy_job import copy_tensor
from weightsmith.engine.running.job_facts import Finished, JobSettings
from weightsmith.engine.running.model_scope import resolve_model_scope
from weightsmith.engine.running.nonfinite import check_finite, located
from weightsmith.engine.running.scheduler import Job, Scheduler
from weightsmith.engine.running.scratch import Scratch
from weightsmith.engine.running.tensor_job import TensorJob
from weightsmith.errors import (
    OutputError,
    ResourceError,
    VerificationError,
    WeightsmithError,
)
from weightsmith.graph import Value
from weightsmith.progress import BYTES, Progress, Silence
from weightsmith.publishing import check_free, check_place
from weightsmith.recipes import distinct_leaves
from weightsmith.tensors import OPEN_FILES
from weightsmith.wording import advice_on, counted, shown

_EXHAUSTED = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
)

ModelResults = Mapping[StatisticMember, Any]
Compute = Callable[[Plan, Store, Journal, Scheduler, set[str], Progress], dict[str, TensorRecord]]


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

    `force` replaces an earlier output of weightsmith; `fresh` discards an interrupted run. With `expected`, tensors
    must come out with these digests; with `sources`, what is read of a checkpoint must have these digests, by
    reference and tensor, where one is given. `compute` does the work (default: threads of this process). `reads` are
    places that the caller reads beside the plan's inputs: no output is put there. The output folder appears whole or
    not at all, and if an interrupted run of the plan had published it already, there is nothing to do but to tidy up.
    Raises RecipeError if the plan has errors, OutputError, ResourceError, CheckpointError, NonFiniteError,
    AssertionFailed or VerificationError.
    """
    require_runnable(plan)
    telling = progress or Silence()
    try:
        file = plan.output.one_file(out)
        if file is not None:
            reads = (*plan.inputs, *reads)
            return _write_one_file(plan, file, telling, expected, sources or {}, force, reads)
        out = check_place(out, (*plan.inputs, *reads))
        with Staging(out, plan.output.earlier_problem) as staging:
            if not fresh and staging.published_plan() == plan.digest:
                staging.tidy()
                staging.discard()
                return manifests.read(out)
            if force and out.exists():
                telling.say("comparing what is to be replaced with its record")
            earlier = check_free(out, plan.output.earlier_problem, force=force)
            journal = staging.begin(plan.digest, fresh or not plan.output.is_resumable)
            staging.check_space(plan.write_bytes)
            records, merged = _write_tensors(plan, staging, journal, telling, compute)
            _check_record(merged, expected, sources or {})
            manifest = seal(plan, merged, records, staging, journal)
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
    plan: Plan, staging: Staging, journal: Journal, progress: Progress, compute: Compute | None
) -> tuple[dict[str, TensorRecord], Merged]:
    """Compute all that an earlier run has not finished; returns the tensors' records, and what was read and written."""
    scheduler = Scheduler(plan.threads, plan.window)
    work = compute if compute and plan.output.is_resumable else compute_tensors
    finished = journal if plan.output.is_resumable else Forgotten()
    with plan.output.store(plan, staging.checkpoint) as store:
        records = resumable(plan, journal, store, scheduler)
        done = sum(plan.layout.placement(name).nbytes for name in records)
        writing = progress.begin("writing", plan.layout.total_size, BYTES, done=done)
        skip = set(records) | store.make_without_reading(writing)
        records |= work(plan, store, finished, scheduler, skip, writing)
        check_assertions(plan, store, scheduler, writing)
        writing.say("writing the manifest")
        store.finish()
        writing.end()
        return records, plan.output.merged(plan, records, store, staging.out)


def _write_one_file(
    plan: Plan,
    file: OneFile,
    progress: Progress,
    expected: Mapping[str, str] | None,
    sources: Mapping[str, Mapping[str, str]],
    force: bool,
    reads: Sequence[Path],
) -> Manifest:
    """Write an output that is one file; an interrupted run starts afresh."""
    place = file.check(force=force, reads=reads)
    scheduler = Scheduler(plan.threads, plan.window)
    with plan.output.store_to_compare(plan) as store:
        writing = progress.begin("writing", plan.layout.total_size, BYTES)
        skip = store.make_without_reading(writing)
        records = compute_tensors(plan, store, Forgotten(), scheduler, skip, writing)
        writing.say("writing the manifest")
        merged = plan.output.merged(plan, records, store, place)
        _check_record(merged, expected, sources)
        manifest = build(plan, merged, None)
        file.write(store, manifest, place, force=force, reads=reads)
        writing.end()
    return manifest


def _check_record(
    merged: Merged,
    expected: Mapping[str, str] | None,
    sources: Mapping[str, Mapping[str, str]],
) -> None:
    """Raise VerificationError where tensors did not come out as expected, or where inputs are not those on record."""
    found = merged.outputs
    wanted = found if expected is None else expected
    names = wanted.keys() | found.keys()
    different = sorted(n for n in names if found.get(n) != wanted.get(n))
    if different:
        raise VerificationError(
            f"The result differs from the record in {len(different)} of {counted(len(names), 'tensor')}, "
            f"the first being {different[0]!r}; "
            "an input was changed, or another version or backend wrote the record. No output was made."
        )
    for given in merged.inputs.values():
        known = sources.get(given.reference, {})
        for tensor, digest in given.tensors.items():
            if known.get(tensor, digest) != digest:
                raise VerificationError(
                    f"Tensor {tensor!r} of the input {given.reference!r} is not the one on record; give the input that "
                    "was merged. No output was made."
                )


def resumable(
    plan: Plan, journal: Journal, shards: Store, scheduler: Scheduler
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
    shards: Store,
    journal: Journal,
    scheduler: Scheduler,
    skip: set[str],
    progress: Progress,
) -> dict[str, TensorRecord]:
    """Compute every tensor that is not in `skip` with the threads of this process, write it and record it."""
    settings, results, wanted = begin(plan, shards, journal, scheduler, skip, progress)
    records: dict[str, TensorRecord] = {}

    def done(record: TensorRecord) -> None:
        records[record.name] = record
        journal.record(record)

    write_tensors(plan, wanted, shards, settings, scheduler, results, done, progress)
    return records


def begin(
    plan: Plan,
    shards: Store,
    journal: Journal,
    scheduler: Scheduler,
    skip: set[str],
    progress: Progress,
) -> tuple[JobSettings, ModelResults, list[PlannedTensor]]:
    """Measure what runs over the model and note it; returns what computing takes, and the tensors that are left."""
    settings = JobSettings(plan.backend.load(), plan.tile_elements, Scratch(shards.folder))
    results = model_results(plan, settings, scheduler, skip, progress)
    note_state(plan, results, journal)
    wanted = [tensor for tensor in _in_file_order(plan) if tensor.output.name not in skip]
    return settings, results, wanted


def write_tensors(
    plan: Plan,
    tensors: Iterable[PlannedTensor],
    shards: Store,
    settings: JobSettings,
    scheduler: Scheduler,
    results: ModelResults,
    done: Callable[[TensorRecord], None],
    progress: Progress,
    *,
    checks: bool = True,
) -> None:
    """Compute tensors into their places; `done` is told of each.

    With `checks` numbers must be finite, and what is continued what it says.
    """

    def write(reading: Sequence[PlannedTensor]) -> Job:
        targets = [_target(tensor, shards, progress) for tensor in reading]
        if reading[0].work.action is Action.COMPUTE:
            job, traced = tensor_job(plan, reading, settings)
            job.adopt(results)
            reads = [traced.reads(tensor.output) for tensor in reading]
            targets = [replace(t, reads=own) for t, own in zip(targets, reads, strict=True)]
            found: list[Finished] = yield from job.compute(targets)
        else:
            stored = [plan.leaf(leaf) for leaf in distinct_leaves(reading[0].output.formula)]
            found = [(yield from copy_tensor(stored, targets[0].placed, settings.tile_elements))]
        for tensor, finished in zip(reading, found, strict=True):
            record = _record(tensor, finished)
            if checks:
                check_finite(plan, tensor, finished)
                check_continued(plan, tensor, record)
            shards.tensor_done(record.name)
            done(record)

    with located(plan, settings, scheduler):
        scheduler.run(write(reading) for reading in _readings(plan, tensors))


def _target(tensor: PlannedTensor, store: Store, progress: Progress) -> Target:
    """Where an output tensor goes."""
    name = tensor.output.name
    placed = store.sink(name, partial(progress.advance, what=name))
    return Target(tensor.output.dtype, placed, tensor.work.storage, partial(store.written, name))


def _readings(plan: Plan, tensors: Iterable[PlannedTensor]) -> list[list[PlannedTensor]]:
    """Tensors in their order, those of one reading together, and there in the order of the plan."""
    readings: dict[str, list[PlannedTensor]] = {}
    for tensor in tensors:
        readings.setdefault(tensor.reading, []).append(tensor)
    places = {tensor.output.name: i for i, tensor in enumerate(plan.tensors)}
    return [sorted(reading, key=lambda t: places[t.output.name]) for reading in readings.values()]


def _record(tensor: PlannedTensor, finished: Finished) -> TensorRecord:
    digests = finished.source_digests
    return TensorRecord(
        tensor.output.name, finished.digest, tuple(digests[i] for i in sorted(digests))
    )


def _in_file_order(plan: Plan) -> Iterable[PlannedTensor]:
    """Tensors in the order of their bytes in the output, so that shards fill one after the other."""
    by_name = {tensor.output.name: tensor for tensor in plan.tensors}
    return (
        by_name[placement.name] for shard in plan.layout.shards for placement in shard.placements
    )


def tensor_job(
    plan: Plan, reading: Sequence[PlannedTensor], settings: JobSettings
) -> tuple[TensorJob, Traced]:
    """The job of computed tensors of one reading, and their graphs."""
    traced = settings.tracer.trace(*(tensor.output for tensor in reading))
    return _job(plan, reading, settings, traced, traced.outputs), traced


def _job(
    plan: Plan,
    reading: Sequence[PlannedTensor],
    settings: JobSettings,
    traced: Traced,
    graphs: tuple[Value, ...],
) -> TensorJob:
    sources = [plan.leaf(leaf) for leaf in traced.sources]
    first = reading[0]
    return TensorJob(
        first.output.name,
        first.output.shape,
        graphs,
        sources,
        settings,
        dict(traced.members),
        dict(traced.numbers),
        wide=first.work.wide,
        key=tuple(tensor.output.name for tensor in reading),
    )


def model_results(
    plan: Plan, settings: JobSettings, scheduler: Scheduler, skip: set[str], progress: Progress
) -> ModelResults:
    """Statistics of the whole model; finished tensors take part, since the statistics need them.

    So do tensors of recipes inside the recipe that no output is made of. Tied tensors count once.
    """
    concerned = [t for t in plan.tensors if t.work.action is Action.COMPUTE and t.work.model_scope]
    if not concerned or all(t.output.name in skip for t in concerned):
        return {}
    progress.say("measuring statistics of the whole model")
    sites: dict[str, list[PlannedTensor]] = {}
    for tensor in (*concerned, *plan.measured):
        if tensor.output.tied_to is None:
            sites.setdefault(tensor.site, []).append(tensor)
    jobs = [_statistics_job(plan, site, settings) for site in sites.values()]
    with located(plan, settings, scheduler):
        resolve_model_scope(jobs, scheduler, plan.resolved.equal_magnitudes)
    return {member: found for job in jobs for member, found in job.model_results().items()}


def _statistics_job(
    plan: Plan, tensors: Sequence[PlannedTensor], settings: JobSettings
) -> TensorJob:
    """A job with all that the tensors of one reading measure."""
    traced = settings.tracer.trace(*(tensor.output for tensor in tensors))
    return _job(plan, tensors, settings, traced, (traced.measured,))
