"""A recipe with free numbers merged into memory for many values, computing only what a change of values touches."""

from __future__ import annotations

import math
import tempfile
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from weightsmith.engine.outputs.choice import output_of_models
from weightsmith.engine.outputs.memory_stores import MemoryStore
from weightsmith.engine.planning.free_tracing import FreeTracer
from weightsmith.engine.planning.plan import Plan, Store, refuse_errors
from weightsmith.engine.planning.planned_tensors import Action, PlannedTensor, planned_tensors
from weightsmith.engine.records.journal import TensorRecord
from weightsmith.engine.records.state import may_continue
from weightsmith.engine.running.assertions import check_assertions
from weightsmith.engine.running.free_gradients import (
    check_losses,
    check_numbers,
    gradient_rounds,
)
from weightsmith.engine.running.job_facts import JobSettings
from weightsmith.engine.running.run import ModelResults, model_results, tensor_job, write_tensors
from weightsmith.engine.running.scheduler import Job, Scheduler
from weightsmith.engine.running.scratch import Scratch
from weightsmith.errors import RecipeError
from weightsmith.findings import errors_among
from weightsmith.graph import FreeNumber, ModelStatistic, NumberNotKnown, free_in, shared_graph, statistic_of
from weightsmith.progress import Progress, Silence
from weightsmith.recipes import Resolved, Values, complete, numbers_of, with_numbers
from weightsmith.tensors import OPEN_FILES, LazyTensor, MemoryTensor

# Names of the free numbers that something depends on.
Names = frozenset[str]


class FreeMerge:
    """Merges of one recipe for any values of its free numbers; made from a plan that has some.

    Formulas are resolved and their graphs traced once. Numbers without which Python cannot build a graph (a density
    that becomes a count) are put into the formulas at each evaluation instead, and these are traced again; which they
    are is found by tracing. The tensors have the bytes that a merge of the filled recipe has, and assertions hold of
    them. `computed` counts the tensors of all evaluations. Raises RecipeError for a plan without free numbers or with
    errors, and for results that are no model.
    """

    def __init__(self, plan: Plan) -> None:
        if plan.free is None or not plan.output.merges_models or plan.output.no_model:
            raise RecipeError(
                plan.output.no_model
                or "Only merges of models with free numbers can be evaluated for values of them."
            )
        refuse_errors(plan)
        self._open = plan.free
        self._tracer = FreeTracer()
        self._plan = plan
        self._bound: Names = frozenset()
        self._planned_for: Mapping[str, float] | None = None
        self._influences: dict[str, Names] = {}
        self._measured: tuple[Mapping[str, float], ModelResults] | None = None
        self._measures: Mapping[str, object] = {}
        self._records_sources = True
        self._given: dict[str, Mapping[str, float]] = {}
        self.computed = 0

    @property
    def numbers(self) -> Mapping[str, FreeNumber]:
        """The free numbers by name, in the order of the recipe."""
        return self._open.numbers

    @property
    def bound(self) -> Names:
        """The numbers that are put into formulas, as far as evaluations have shown."""
        return self._bound

    def evaluate(
        self, values: Values | Literal["start"], progress: Progress | None = None
    ) -> dict[str, MemoryTensor]:
        """The merged tensors that differ from those of the last evaluation, all of them the first time.

        `values` are of all free numbers. A tensor differs where a number that it is made with has another value.
        Memory holds what is returned. Raises RecipeError for values that do not fit, and what a merge raises.
        """
        store = MemoryStore(self._plan.layout, lazy=True)
        self.write(values, store, progress)
        return store.tensors

    def write(
        self, values: Values | Literal["start"], store: Store, progress: Progress | None = None
    ) -> dict[str, str]:
        """As `evaluate`, with the tensors put into a store; returns their digests.

        Where it raises, the store may hold some of them: whoever has lost what was there before says so (`forget`).
        """
        given = complete(self._open.numbers, values)
        plan = self._planned(given)
        wanted = [t for t in plan.tensors if self._given.get(t.output.name) != self._of(t, given)]
        digests = self._computed(plan, wanted, given, store, progress or Silence(), checks=True)
        self._given |= {t.output.name: self._of(t, given) for t in wanted}
        self.computed += len(wanted)
        return digests

    def tensors_for(
        self, values: Values | Literal["start"], names: Collection[str]
    ) -> dict[str, MemoryTensor]:
        """Some merged tensors, whatever the last evaluation was; it stays the last one."""
        given = complete(self._open.numbers, values)
        plan = self._planned(given)
        store = MemoryStore(plan.layout, lazy=True)
        wanted = [tensor for tensor in plan.tensors if tensor.output.name in names]
        self._computed(plan, wanted, given, store, Silence(), checks=False)
        return store.tensors

    def forget(self) -> None:
        """Let the next evaluation give all tensors."""
        self._given = {}

    def _computed(
        self,
        plan: Plan,
        wanted: list[PlannedTensor],
        given: Mapping[str, float],
        store: Store,
        progress: Progress,
        *,
        checks: bool,
    ) -> dict[str, str]:
        """Put tensors into a store, and check what the recipe says of them; returns their digests."""
        digests: dict[str, str] = {}

        def done(record: TensorRecord) -> None:
            digests[record.name] = record.digest

        try:
            settings, scheduler, results = self._begun(plan, wanted, given, progress)
            write_tensors(plan, wanted, store, settings, scheduler, results, done, progress)
            if checks:
                checked = replace(plan, resolved=_compared_with(plan.resolved, given))
                check_assertions(checked, store, scheduler, progress, only=digests.keys())
        finally:
            OPEN_FILES.close()
        return digests

    def _of(self, tensor: PlannedTensor, given: Mapping[str, float]) -> Mapping[str, float]:
        """The values that a tensor depends on."""
        return {name: given[name] for name in self._influences[tensor.output.name]}

    def gradient(
        self,
        values: Values | Literal["start"],
        losses: Mapping[str, LazyTensor],
        of: Collection[str] | None = None,
        progress: Progress | None = None,
    ) -> dict[str, float]:
        """dL/dv of free numbers v, `of` all or those named, summed in float64, from dL/dtheta of merged tensors.

        Tensors that are left out count as if their gradient were 0. The rounding of results to what they are stored in
        is passed over. See `free_gradients` for memory. Raises UsageError for gradients of other tensors or numbers,
        and GradientError where there is none: for numbers in `bound`, and through statistics of the whole model.
        """
        given = complete(self._open.numbers, values)
        plan = self._planned(given)
        asked = list(given) if of is None else list(of)
        check_numbers(asked, given, self._bound)
        tensors = {tensor.output.name: tensor for tensor in plan.tensors}
        check_losses(losses, tensors)
        found: dict[str, list[float]] = {name: [] for name in given}
        settings, scheduler, results = self._begun(
            plan, [tensors[name] for name in losses], given, progress or Silence()
        )

        def pulled(name: str) -> Job:
            job, _ = tensor_job(plan, [tensors[name]], settings)
            job.adopt(results)
            for number, value in (yield from gradient_rounds(job, losses[name])).items():
                found[number].append(value)

        wanted = [n for n in losses if tensors[n].work.action is Action.COMPUTE]
        try:
            scheduler.run(pulled(name) for name in wanted)
        finally:
            OPEN_FILES.close()
        return {name: math.fsum(found[name]) for name in asked}

    def _begun(
        self,
        plan: Plan,
        wanted: list[PlannedTensor],
        given: Mapping[str, float],
        progress: Progress,
    ) -> tuple[JobSettings, Scheduler, ModelResults]:
        """What tensors are computed with, statistics of the model among it."""
        scratch = Scratch(Path(tempfile.gettempdir()))
        settings = JobSettings(
            plan.backend.load(),
            plan.tile_elements,
            scratch,
            self._tracer,
            records_sources=self._records_sources,
        )
        scheduler = Scheduler(plan.threads, plan.window)
        results: ModelResults = {}
        if any(tensor.work.model_scope for tensor in wanted):
            results = self._model_results(plan, settings, scheduler, given, progress)
        return settings, scheduler, results

    def _model_results(
        self,
        plan: Plan,
        settings: JobSettings,
        scheduler: Scheduler,
        given: Mapping[str, float],
        progress: Progress,
    ) -> ModelResults:
        """Statistics of the whole model, measured again where a number that they depend on has another value."""
        statistics = _statistics(plan, self._tracer)
        names = frozenset().union(*statistics.values(), self._bound)
        key = {name: given[name] for name in names}
        if self._measured is None or self._measured[0] != key:
            found = model_results(plan, settings, scheduler, set(), progress)
            self._measured = (key, found)
        return self._measured[1]

    # Planning ----------------------------------------------------------------------------------------------------

    def _planned(self, given: Mapping[str, float]) -> Plan:
        """The plan for these values: that of the last evaluation, unless formulas or graphs are others."""
        self._tracer.values = given
        found = self._open.resolved_for(given)
        is_changed = self._tracer.forget_changed() or found is not self._open
        self._open = found
        joined = _joined(self._plan)
        while True:
            values = {name: given[name] for name in self._bound}
            if self._planned_for == values and not is_changed:
                return self._plan
            self._planned_for = None
            try:
                self._plan = self._made(values)
            except NumberNotKnown as needed:
                if needed.names <= self._bound:
                    raise
                self._bound |= needed.names
                continue
            measured = _measured_graphs(self._plan, self._tracer)
            if measured != self._measures:
                # Other statistics are measured, or other tensors take part in them.
                self._measured, self._measures = None, measured
                joined |= _joined(self._plan)
                self._given = {n: given for n, given in self._given.items() if n not in joined}
            self._planned_for, is_changed = values, False
            self._influences = self._influencing(self._plan)
            self._records_sources = may_continue(self._plan)

    def _made(self, values: Mapping[str, float]) -> Plan:
        assert self._open.resolved is not None
        resolved = _with(self._open.resolved, values)
        output = output_of_models(resolved)
        tensors, measured, findings = planned_tensors(resolved, output.readings, self._tracer)
        for error in errors_among(findings):
            raise RecipeError(error.sentence)
        return replace(
            self._plan, resolved=resolved, output=output, tensors=tensors, measured=measured
        )

    def _influencing(self, plan: Plan) -> dict[str, Names]:
        """For each tensor the numbers that it depends on: those of its formula, and of statistics that it goes by."""
        assert self._open.resolved is not None
        outputs = self._open.resolved.outputs
        own = {o.name: frozenset(n.name for n in numbers_of([o])) for o in outputs}
        by_name = {output.name: output for output in outputs}
        for clause in self._open.resolved.assertions:
            for name, reference in zip(clause.tensors, clause.references, strict=False):
                compared = replace(by_name[name], formula=reference)
                own[name] |= frozenset(number.name for number in numbers_of([compared]))
        joined = _joined(plan)
        measured = frozenset().union(*_statistics(plan, self._tracer).values())
        # Numbers that graphs are built with may change statistics without being in them.
        built = frozenset().union(*(own[name] & self._bound for name in joined))
        return own | {name: own[name] | measured | built for name in joined}


def _joined(plan: Plan) -> set[str]:
    """The tensors that go by statistics of the model."""
    return {tensor.output.name for tensor in plan.tensors if tensor.work.model_scope}


def _measured_graphs(plan: Plan, tracer: FreeTracer) -> dict[str, object]:
    """What each tensor measures for statistics of the model; equal graphs are one object."""
    return {
        tensor.output.name: {
            (member, shared_graph(node)[node])
            for node, member in tracer.trace(tensor.output).members.items()
        }
        for tensor in (*plan.tensors, *plan.measured)
        if tensor.work.model_scope
    }


def _with(resolved: Resolved, values: Mapping[str, float]) -> Resolved:
    """The same with values in formulas."""
    if not values:
        return resolved
    outputs, measured = (
        tuple(replace(o, formula=with_numbers(o.formula, values)) for o in tensors)
        for tensors in (resolved.outputs, resolved.measured)
    )
    return replace(resolved, outputs=outputs, measured=measured)


def _compared_with(resolved: Resolved, values: Mapping[str, float]) -> Resolved:
    """The same with values in what assertions compare with."""
    clauses = tuple(
        replace(clause, references=tuple(with_numbers(f, values) for f in clause.references))
        for clause in resolved.assertions
    )
    return replace(resolved, assertions=clauses)


def _statistics(plan: Plan, tracer: FreeTracer) -> dict[ModelStatistic, Names]:
    """The free numbers that each statistic of the model depends on."""
    found: dict[ModelStatistic, Names] = defaultdict(frozenset)
    for tensor in (*plan.tensors, *plan.measured):
        if tensor.work.action is Action.COMPUTE and tensor.work.model_scope:
            for node in tracer.trace(tensor.output).members:
                statistic = statistic_of(node)
                assert statistic is not None
                found[statistic] |= {number.name for number in free_in([node]).values()}
    return found
