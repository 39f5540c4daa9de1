"""Statistics over the whole model: the same reduction measured on many tensors and joined.

Tensors belong together when their reductions carry the same group key (see `trace`). Each round
streams every tensor that takes part once, measuring all of its pending model-wide reductions
together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from weightsmith.engine.scheduler import Job, Rounds, Scheduler
from weightsmith.engine.tensor_job import TensorJob, combine_partials
from weightsmith.engine.tiles import sample_step
from weightsmith.tensors.equal_graphs import walked
from weightsmith.tensors.graph import Cut, Scalar
from weightsmith.tensors.layers import adds_to
from weightsmith.tensors.order import Gate, Selection, SummedHistograms, gate_for, local_cut
from weightsmith.tensors.passes import Collect, CollectPart, CutPoint, HistogramPart, Request


@dataclass(slots=True)
class _Member:
    job: TensorJob
    reduction: Scalar | Cut
    offset: int
    tiles: int = 0
    again: list[Scalar | Cut] = field(default_factory=list)


@dataclass(slots=True)
class _Group:
    members: list[_Member]
    selection: Selection | None = None
    result: Any = None
    population: int = 0

    def add(self, job: TensorJob, reduction: Scalar | Cut) -> None:
        if self.members and self.members[-1].job is job:
            # The parts of one coded tensor ask for the same number; it is one tensor all the same.
            self.members[-1].again.append(reduction)
            return
        self.members.append(_Member(job, reduction, self.population))
        self.population += job.numel


@dataclass(frozen=True, slots=True)
class _Sample:
    """Where the model's tensors begin, by identity of their jobs, and how far apart its sampled runs do."""

    places: Mapping[int, int]
    step: int


def resolve_model_scope(jobs: Sequence[TensorJob], scheduler: Scheduler) -> None:
    """Measure every model-wide reduction of these jobs and put the results into their `known`.

    Jobs must be in the plan's order, which decides between equal magnitudes of different tensors.
    """
    while True:
        scheduler.run(job.resolve(for_model=True) for job in jobs)
        groups = _pending(jobs)
        if not groups:
            return
        _prepare(groups)
        _sample(groups, scheduler)
        while open_groups := {key: g for key, g in groups.items() if g.result is None}:
            _measure(open_groups, scheduler)
        for group in groups.values():
            for member in group.members:
                local = _local(group.result, member)
                member.job.known |= dict.fromkeys([member.reduction, *member.again], local)


def _pending(jobs: Sequence[TensorJob]) -> dict[Hashable, _Group]:
    """The statistics that can be measured now: no tensor of theirs has to measure something else for them first."""
    groups: dict[Hashable, _Group] = {}
    late: set[Hashable] = set()
    for job in jobs:
        pending = job.pending_model_reductions()
        late |= _later_keys(job, pending)
        for reduction in pending:
            groups.setdefault(job.groups[reduction], _Group([])).add(job, reduction)
    return {key: group for key, group in groups.items() if key not in late} or groups


def _later_keys(job: TensorJob, pending: Sequence[Scalar | Cut]) -> set[Hashable]:
    """The statistics that a tensor takes part in, but not yet."""
    now = {job.groups[reduction] for reduction in pending}
    return {
        job.groups[node]
        for node in walked([job.output], job.known)
        if node in job.groups and node not in job.known and job.groups[node] not in now
    }


def _prepare(groups: dict[Hashable, _Group]) -> None:
    for group in groups.values():
        first = group.members[0]
        if isinstance(first.reduction, Cut):
            wanted = first.job.wanted(first.reduction, group.population)
            group.selection = Selection(
                wanted, group.population, max(m.job.key_bits for m in group.members)
            )
            group.result = group.selection.result


def _sample(groups: dict[Hashable, _Group], scheduler: Scheduler) -> None:
    places: dict[int, int] = {}
    population = 0
    for member in (member for group in groups.values() for member in group.members):
        if id(member.job) not in places:
            places[id(member.job)] = population
            population += member.job.numel
    sample = _Sample(places, sample_step(population))
    while asked := {
        key: request
        for key, g in groups.items()
        if g.selection and (request := g.selection.sample_request)
    }:
        found = _stream(groups, dict(asked), scheduler, sample)
        for key, by_member in found.items():
            selection = groups[key].selection
            assert selection is not None
            selection.absorb_sample(asked[key], by_member[0])


def _measure(groups: dict[Hashable, _Group], scheduler: Scheduler) -> None:
    asked: dict[Hashable, Request | None] = {
        key: group.selection.request() if group.selection else None for key, group in groups.items()
    }
    for key, by_member in _stream(groups, asked, scheduler).items():
        group, request = groups[key], asked[key]
        if group.selection is None:
            group.result = combine_partials(
                group.members[0].reduction.op, [p for parts in by_member for p in parts]
            )
            continue
        assert request is not None
        if not (isinstance(request, Collect) and request.only_part is not None):
            for member, parts in zip(group.members, by_member, strict=True):
                member.tiles = len(parts)
        joined = [
            _global(p, m.offset)
            for m, parts in zip(group.members, by_member, strict=True)
            for p in parts
        ]
        group.selection.absorb(request, joined)
        group.result = group.selection.result


def _stream(
    groups: dict[Hashable, _Group],
    asked: dict[Hashable, Request | None],
    scheduler: Scheduler,
    sample: _Sample | None = None,
) -> dict[Hashable, list[list[Any]]]:
    """Stream every member once; for each group, each member's parts (of histograms, their sum as the first's)."""
    gates = {key: gate_for(request) for key, request in asked.items()}
    found: dict[Hashable, list[list[Any]]] = {
        key: [[] for _ in groups[key].members] for key in asked
    }
    by_job: dict[int, list[tuple[Hashable, int, _Member, int | None]]] = {}
    jobs: dict[int, TensorJob] = {}
    for key, request in asked.items():
        for position, (member, tile) in enumerate(_asked_members(groups[key], request)):
            if tile != -1:
                jobs[id(member.job)] = member.job
                by_job.setdefault(id(member.job), []).append((key, position, member, tile))

    def stream(job: TensorJob, wanted: list[tuple[Hashable, int, _Member, int | None]]) -> Job:
        full = [entry for entry in wanted if entry[3] is None]
        if full:
            yield from _part(job, full, asked, None, found, gates, sample)
        for entry in wanted:
            if entry[3] is not None:
                yield from _part(job, [entry], asked, entry[3], found, gates)

    scheduler.run(stream(jobs[identity], wanted) for identity, wanted in by_job.items())
    for key, gate in gates.items():
        if isinstance(gate, SummedHistograms):
            found[key][0] = [gate.total]
    return found


def _part(
    job: TensorJob,
    entries: Sequence[tuple[Hashable, int, _Member, int | None]],
    asked: dict[Hashable, Request | None],
    tile: int | None,
    found: dict[Hashable, list[list[Any]]],
    gates: Mapping[Hashable, Gate | None],
    sample: _Sample | None = None,
) -> Rounds:
    requests = [(member.reduction, asked[key]) for key, _, member, _ in entries]
    if sample is not None:
        parts = yield from job.sample_part(requests, (sample.places[id(job)], sample.step))
        for (key, *_), of_key in zip(entries, parts, strict=True):
            gate = gates[key]
            assert isinstance(gate, SummedHistograms)
            for part in of_key:
                gate.admit(part)
        return
    bounds = [gates[key] for key, *_ in entries]
    parts = yield from job.measure_part(requests, only_tile=tile, gates=bounds)
    for (key, position, _, _), part in zip(entries, parts, strict=True):
        found[key][position] = part


def _asked_members(group: _Group, request: Request | None) -> list[tuple[_Member, int | None]]:
    """Members with the one tile that is asked of them: None for all tiles, -1 for none."""
    if not (isinstance(request, Collect) and request.only_part is not None):
        return [(m, None if adds_to(m.reduction) else -1) for m in group.members]
    result: list[tuple[_Member, int | None]] = []
    first = 0
    for member in group.members:
        inside = first <= request.only_part < first + member.tiles
        result.append((member, request.only_part - first if inside else -1))
        first += member.tiles
    return result


def _global(part: Any, offset: int) -> Any:
    if isinstance(part, CollectPart):
        return dataclasses.replace(part, indices=part.indices + offset)
    assert isinstance(part, HistogramPart)
    return part


def _local(result: Any, member: _Member) -> Any:
    if isinstance(result, CutPoint):
        return local_cut(result, member.offset, member.job.numel)
    return result
