"""Statistics over the whole model: the same reduction measured on many tensors and joined.

Tensors belong together when their reductions have the same name (`graph.model_statistics`). Each round
streams every tensor that takes part once, measuring all of its pending model-wide reductions
together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.engine.planning.tiles import sample_step
from weightsmith.engine.running.scheduler import Job, Rounds, Scheduler
from weightsmith.engine.running.tensor_job import TensorJob, combine_partials
from weightsmith.graph import (
    Collect,
    CollectPart,
    Equal,
    EqualMagnitudes,
    Gate,
    HistogramPart,
    ModelStatistic,
    Request,
    Scalar,
    Selection,
    SummedHistograms,
    Threshold,
    ThresholdPoint,
    adds_to,
    gate_for,
    local_threshold,
    model_ranks,
    rank_key,
    walked,
)


@dataclass(slots=True)
class _Part:
    """One tensor's part in a statistic: the job that measures it, and all nodes of jobs that want the result."""

    tensor: str
    job: TensorJob
    reduction: Scalar | Threshold
    wanted: list[tuple[TensorJob, Scalar | Threshold]]
    offset: int = 0
    tiles: int = 0
    rank_key: int = 0


@dataclass(slots=True)
class _Statistic:
    """A statistic of the model with its parts in the order that decides between equal magnitudes."""

    parts: list[_Part]
    selection: Selection | None = None
    result: Any = None

    @property
    def population(self) -> int:
        """How many elements it runs over."""
        return sum(part.job.numel for part in self.parts)


@dataclass(frozen=True, slots=True)
class _Sample:
    """Where the model's tensors begin, by identity of their jobs, and how far apart its sampled runs do."""

    places: Mapping[int, int]
    step: int


def resolve_model_scope(
    jobs: Sequence[TensorJob],
    scheduler: Scheduler,
    equal_magnitudes: EqualMagnitudes = EqualMagnitudes.HASH,
) -> None:
    """Measure every model-wide reduction of these jobs and put the results into their `known`.

    The order of the jobs, which is that of the files, decides between equal magnitudes of different tensors only where
    `equal_magnitudes` says so.
    """
    while True:
        scheduler.run(job.resolve(for_model=True) for job in jobs)
        statistics = _pending(jobs)
        if not statistics:
            return
        for statistic in statistics.values():
            _prepare(statistic, equal_magnitudes)
        _sample(statistics, scheduler)
        while still_open := {key: s for key, s in statistics.items() if s.result is None}:
            _measure(still_open, scheduler)
        for statistic in statistics.values():
            for part in statistic.parts:
                found = _local(statistic.result, part)
                for job, reduction in part.wanted:
                    job.known[reduction] = found


def _pending(jobs: Sequence[TensorJob]) -> dict[ModelStatistic, _Statistic]:
    """The statistics that can be measured now: no tensor of theirs has to measure something else for them first."""
    parts: dict[ModelStatistic, dict[str, _Part]] = {}
    late: set[ModelStatistic] = set()
    for job in jobs:
        pending = job.pending_model_reductions()
        late |= _later(job, pending)
        for reduction in pending:
            member = job.members[reduction]
            own = parts.setdefault(member.statistic, {})
            part = own.setdefault(member.tensor, _Part(member.tensor, job, reduction, []))
            part.wanted.append((job, reduction))
    ready = {key: found for key, found in parts.items() if key not in late} or parts
    return {key: _Statistic(list(found.values())) for key, found in ready.items()}


def _later(job: TensorJob, pending: Sequence[Scalar | Threshold]) -> set[ModelStatistic]:
    """The statistics that a tensor takes part in, but not yet."""
    now = {job.members[reduction].statistic for reduction in pending}
    return {
        job.members[node].statistic
        for node in walked(job.outputs, job.known)
        if node in job.members and node not in job.known and job.members[node].statistic not in now
    }


def _prepare(statistic: _Statistic, equal_magnitudes: EqualMagnitudes) -> None:
    """Put the parts in order, and look for a threshold by what is known of it."""
    if equal_magnitudes is not EqualMagnitudes.FILE:
        statistic.parts.sort(key=lambda part: part.tensor)
    offset = 0
    for part in statistic.parts:
        part.offset, part.rank_key = offset, rank_key(part.tensor)
        offset += part.job.numel
    first = statistic.parts[0]
    if isinstance(first.reduction, Threshold):
        ranks = None
        if equal_magnitudes is EqualMagnitudes.HASH:
            ranks = model_ranks([(part.tensor, part.job.numel) for part in statistic.parts])
        wanted = first.job.wanted(first.reduction, offset)
        key_bits = max(part.job.key_bits for part in statistic.parts)
        statistic.selection = Selection(wanted, offset, key_bits, ranks=ranks)
        statistic.result = statistic.selection.result


def _sample(statistics: dict[ModelStatistic, _Statistic], scheduler: Scheduler) -> None:
    places: dict[int, int] = {}
    population = 0
    for part in (part for statistic in statistics.values() for part in statistic.parts):
        if id(part.job) not in places:
            places[id(part.job)] = population
            population += part.job.numel
    sample = _Sample(places, sample_step(population))
    while asked := {
        key: request
        for key, s in statistics.items()
        if s.selection and (request := s.selection.sample_request)
    }:
        found = _stream(statistics, dict(asked), scheduler, sample)
        for key, by_part in found.items():
            selection = statistics[key].selection
            assert selection is not None
            selection.absorb_sample(asked[key], by_part[0])


def _measure(statistics: dict[ModelStatistic, _Statistic], scheduler: Scheduler) -> None:
    asked: dict[ModelStatistic, Request | None] = {
        key: s.selection.request() if s.selection else None for key, s in statistics.items()
    }
    found = _stream(statistics, asked, scheduler)
    for key in list(found):
        # Answers may hold a million elements each, so none outlives its turn.
        by_part = found.pop(key)
        statistic, request = statistics[key], asked[key]
        if statistic.selection is None:
            statistic.result = combine_partials(
                statistic.parts[0].reduction.op, [a for answers in by_part for a in answers]
            )
            continue
        assert request is not None
        if not (isinstance(request, Collect) and request.only_part is not None):
            for part, answers in zip(statistic.parts, by_part, strict=True):
                part.tiles = len(answers)
        joined = [
            _global(answer, part.offset)
            for part, answers in zip(statistic.parts, by_part, strict=True)
            for answer in answers
        ]
        statistic.selection.absorb(request, joined)
        statistic.result = statistic.selection.result


def _stream(
    statistics: dict[ModelStatistic, _Statistic],
    asked: dict[ModelStatistic, Request | None],
    scheduler: Scheduler,
    sample: _Sample | None = None,
) -> dict[ModelStatistic, list[list[Any]]]:
    """Stream every part once; for each statistic, each part's answers (of histograms, their sum as the first's)."""
    gates = {key: gate_for(request) for key, request in asked.items()}
    found: dict[ModelStatistic, list[list[Any]]] = {
        key: [[] for _ in statistics[key].parts] for key in asked
    }
    by_job: dict[int, list[tuple[ModelStatistic, int, _Part, int | None]]] = {}
    jobs: dict[int, TensorJob] = {}
    for key, request in asked.items():
        for position, (part, tile) in enumerate(_asked_parts(statistics[key], request)):
            if tile != -1:
                jobs[id(part.job)] = part.job
                by_job.setdefault(id(part.job), []).append((key, position, part, tile))

    def stream(job: TensorJob, wanted: list[tuple[ModelStatistic, int, _Part, int | None]]) -> Job:
        full = [entry for entry in wanted if entry[3] is None]
        if full:
            yield from _answers(job, full, asked, None, found, gates, sample)
        for entry in wanted:
            if entry[3] is not None:
                yield from _answers(job, [entry], asked, entry[3], found, gates)

    scheduler.run(stream(jobs[identity], wanted) for identity, wanted in by_job.items())
    for key, gate in gates.items():
        if isinstance(gate, SummedHistograms):
            found[key][0] = [gate.total]
    return found


def _answers(
    job: TensorJob,
    entries: Sequence[tuple[ModelStatistic, int, _Part, int | None]],
    asked: dict[ModelStatistic, Request | None],
    tile: int | None,
    found: dict[ModelStatistic, list[list[Any]]],
    gates: Mapping[ModelStatistic, Gate | None],
    sample: _Sample | None = None,
) -> Rounds:
    requests = [(part.reduction, _of_part(asked[key], part)) for key, _, part, _ in entries]
    bounds = [gates[key] for key, *_ in entries]
    if sample is not None:
        yield from job.sample_part(requests, bounds, (sample.places[id(job)], sample.step))
        return
    answers = yield from job.measure_part(requests, only_tile=tile, gates=bounds)
    for (key, position, _, _), of_key in zip(entries, answers, strict=True):
        found[key][position] = of_key


def _of_part(request: Request | None, part: _Part) -> Request | None:
    if isinstance(request, Equal):
        return dataclasses.replace(request, rank_key=part.rank_key)
    return request


def _asked_parts(statistic: _Statistic, request: Request | None) -> list[tuple[_Part, int | None]]:
    """Parts with the one tile that is asked of them: None for all tiles, -1 for none."""
    if not (isinstance(request, Collect) and request.only_part is not None):
        return [(part, None if adds_to(part.reduction) else -1) for part in statistic.parts]
    result: list[tuple[_Part, int | None]] = []
    first = 0
    for part in statistic.parts:
        inside = first <= request.only_part < first + part.tiles
        result.append((part, request.only_part - first if inside else -1))
        first += part.tiles
    return result


def _global(part: Any, offset: int) -> Any:
    if isinstance(part, CollectPart):
        # Not in place: equal reductions of one tensor share their answer.
        moved = part.indices + offset if offset else part.indices
        return dataclasses.replace(part, indices=moved)
    assert isinstance(part, HistogramPart)
    return part


def _local(result: Any, part: _Part) -> Any:
    if isinstance(result, ThresholdPoint):
        return local_threshold(result, part.offset, part.job.numel, part.rank_key)
    return result
