"""The plan of a recipe with free numbers, kept from values to values for as long as it is the same."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from weightsmith.engine.outputs.choice import output_of_models
from weightsmith.engine.planning.free_tracing import FreeTracer
from weightsmith.engine.planning.plan import Plan
from weightsmith.engine.planning.planned_tensors import Action, PlannedTensor, planned_tensors
from weightsmith.engine.records.state import may_continue
from weightsmith.engine.running.job_facts import JobSettings
from weightsmith.engine.running.mask_values import MaskValues
from weightsmith.engine.running.run import ModelResults, model_results
from weightsmith.engine.running.scheduler import Scheduler
from weightsmith.engine.running.scratch import Scratch
from weightsmith.errors import RecipeError
from weightsmith.findings import errors_among
from weightsmith.graph import (
    FreeNumber,
    ModelStatistic,
    NumberNotKnown,
    free_in,
    shared_graph,
    statistic_of,
)
from weightsmith.progress import Progress
from weightsmith.recipes import OpenRecipe, Resolved, distinct_leaves, numbers_of, with_numbers

# Names of the free numbers that something depends on.
Names = frozenset[str]
# What tells the results of a tensor apart: values, and which statistics of the model were measured.
Dependence = tuple[Mapping[str, float], int]


class FreePlanner:
    """Plans of one recipe for any values, and what is measured over the model for them.

    Numbers without which Python cannot build a graph are put into the formulas, and these are traced again: they are
    `bound`, and found by tracing. `nearby`: graphs are those of points around the values, not of the values alone.
    Where a method leaves out a multiplication by 1, gradients need it.
    """

    def __init__(
        self,
        plan: Plan,
        open_recipe: OpenRecipe,
        masks: MaskValues | None = None,
        *,
        nearby: bool = False,
    ) -> None:
        self.open = open_recipe
        self.bound: Names = frozenset()
        self._plan, self._nearby = plan, nearby
        self._tracer = FreeTracer()
        self._planned_for: Mapping[str, float] | None = None
        self._influences: dict[str, Names] = {}
        self._measured: tuple[Mapping[str, float], ModelResults] | None = None
        self._measures: Mapping[str, object] = {}
        self._measurings = 0
        self._records_sources = True
        self.masks = masks or MaskValues(open_recipe.masks)

    def planned(self, given: Mapping[str, float]) -> Plan:
        """The plan for these values: that of the last ones, unless formulas or graphs are others."""
        near = near_by(self.open.numbers, given) if self._nearby else None
        self._tracer.values, self._tracer.nearby = given, near
        found = self.open.resolved_for(given, near)
        is_changed = self._tracer.forget_changed() or found is not self.open
        self.open = found
        self.masks.hold(found)
        while True:
            values = {name: given[name] for name in self.bound}
            if self._planned_for == values and not is_changed:
                return self._plan
            self._planned_for = None
            try:
                self._plan = self._made(values)
            except NumberNotKnown as needed:
                if needed.names <= self.bound:
                    raise
                self.bound |= needed.names
                continue
            measured = _measured_graphs(self._plan, self._tracer)
            if measured != self._measures:
                # Other statistics are measured, or other tensors take part in them.
                self._measured, self._measures = None, measured
                self._measurings += 1
            self._planned_for, is_changed = values, False
            self._influences = self._influencing(self._plan)
            self._records_sources = may_continue(self._plan)

    def dependence(self, tensor: PlannedTensor, given: Mapping[str, float]) -> Dependence:
        """What a tensor of the last plan depends on."""
        values = self._at(self._influences[tensor.output.name], given)
        return values, self._measurings if tensor.work.model_scope else 0

    def _at(self, names: Names, given: Mapping[str, float]) -> dict[str, float]:
        """The values of numbers, and how often masks were given."""
        versions = self.masks.versions
        return {name: given[name] if name in given else float(versions[name]) for name in names}

    def begun(
        self,
        plan: Plan,
        wanted: list[PlannedTensor],
        given: Mapping[str, float],
        progress: Progress,
    ) -> tuple[JobSettings, Scheduler, ModelResults]:
        """What tensors are computed with, statistics of the model among it."""
        settings = JobSettings(
            plan.backend.load(),
            plan.tile_elements,
            Scratch(Path(tempfile.gettempdir())),
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
        names = frozenset().union(*statistics.values(), self.bound)
        key = self._at(names | self.open.masks.keys(), given)
        if self._measured is None or self._measured[0] != key:
            found = model_results(plan, settings, scheduler, set(), progress)
            self._measured = (key, found)
        return self._measured[1]

    def _made(self, values: Mapping[str, float]) -> Plan:
        assert self.open.resolved is not None
        resolved = _with(self.open.resolved, values)
        output = output_of_models(resolved)
        tensors, measured, findings = planned_tensors(resolved, output.readings, self._tracer)
        for error in errors_among(findings):
            raise RecipeError(error.sentence)
        return replace(
            self._plan, resolved=resolved, output=output, tensors=tensors, measured=measured
        )

    def _influencing(self, plan: Plan) -> dict[str, Names]:
        """For each tensor the numbers that it depends on: those of its formula, and of statistics that it goes by."""
        assert self.open.resolved is not None
        outputs = self.open.resolved.outputs
        masks = self.open.masks.keys()
        own = {
            o.name: frozenset(n.name for n in numbers_of([o]))
            | (masks & {leaf.checkpoint for leaf in distinct_leaves(o.formula)})
            for o in outputs
        }
        by_name = {output.name: output for output in outputs}
        for clause in self.open.resolved.assertions:
            for name, reference in zip(clause.tensors, clause.references, strict=False):
                compared = replace(by_name[name], formula=reference)
                own[name] |= frozenset(number.name for number in numbers_of([compared]))
        joined = {tensor.output.name for tensor in plan.tensors if tensor.work.model_scope}
        measured = frozenset().union(*_statistics(plan, self._tracer).values())
        # Numbers that graphs are built with may change statistics without being in them.
        built = frozenset().union(*(own[name] & (self.bound | masks) for name in joined))
        return own | {name: own[name] | measured | built for name in joined}


def near_by(numbers: Mapping[str, FreeNumber], values: Mapping[str, float]) -> dict[str, float]:
    """A point close to the values within the bounds, at which numbers are equal only if they always are."""
    found = {}
    for i, (name, number) in enumerate(numbers.items()):
        step = (number.high - number.low) * 1e-6 * (1.0 + (0.618034 * i) % 1.0)
        value = values[name]
        found[name] = value + step if value + step <= number.high else value - step
    return found


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
