"""A recipe with free numbers merged into memory for many values, computing only what a change of values touches."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from weightsmith.engine.outputs.memory_stores import MemoryStore
from weightsmith.engine.planning.plan import Plan, Store, refuse_errors
from weightsmith.engine.planning.planned_tensors import Action, PlannedTensor
from weightsmith.engine.records.journal import TensorRecord
from weightsmith.engine.running.assertions import check_assertions
from weightsmith.engine.running.free_gradients import (
    check_losses,
    check_numbers,
    gradient_rounds,
)
from weightsmith.engine.running.free_planning import Dependence, FreePlanner, Names
from weightsmith.engine.running.mask_gradients import MaskGradients
from weightsmith.engine.running.mask_values import MaskTensors, MaskValues
from weightsmith.engine.running.run import tensor_job, write_tensors
from weightsmith.engine.running.scheduler import Job, Rounds
from weightsmith.engine.running.tensor_job import TensorJob
from weightsmith.errors import RecipeError, UsageError
from weightsmith.graph import FreeNumber
from weightsmith.progress import Progress, Silence
from weightsmith.recipes import MaskNumbers, Resolved, Values, complete, with_numbers
from weightsmith.tensors import OPEN_FILES, LazyTensor, MemoryTensor
from weightsmith.wording import shown


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
        self.numbers: Mapping[str, FreeNumber] = plan.free.numbers
        self._layout = plan.layout
        self.masks: Mapping[str, MaskNumbers] = plan.free.masks
        self.given_masks = MaskValues(plan.free.masks)
        self._planner = FreePlanner(plan, plan.free, self.given_masks)
        self._slopes = FreePlanner(plan, plan.free, self.given_masks, nearby=True)
        self._given: dict[str, Dependence] = {}
        self.computed = 0

    @property
    def bound(self) -> Names:
        """The numbers that are put into formulas, as far as evaluations have shown."""
        return self._planner.bound

    def set_mask(self, name: str, tensors: MaskTensors | str | Path) -> None:
        """The numbers of a free mask from now on, until then those that it starts from; see `MaskValues.give`.

        `tensors` are float32 in the shapes of `masks[name].shapes`, by the names of the model's, and may be read from
        files while they are used; or the path of a file of kind mask.
        """
        self.given_masks.give(name, tensors)

    def evaluate(
        self, values: Values | Literal["start"], progress: Progress | None = None
    ) -> dict[str, MemoryTensor]:
        """The merged tensors that differ from those of the last evaluation, all of them the first time.

        `values` are of all free numbers. A tensor differs where a number that it is made with has another value.
        Memory holds what is returned. Raises RecipeError for values that do not fit, and what a merge raises.
        """
        store = MemoryStore(self._layout, lazy=True)
        self.write(values, store, progress)
        return store.tensors

    def write(
        self, values: Values | Literal["start"], store: Store, progress: Progress | None = None
    ) -> dict[str, str]:
        """As `evaluate`, with the tensors put into a store; returns their digests.

        Where it raises, the store may hold some of them: whoever has lost what was there before says so (`forget`).
        """
        given = complete(self.numbers, values)
        plan = self._planner.planned(given)
        depends = {t.output.name: self._planner.dependence(t, given) for t in plan.tensors}
        wanted = [
            t for t in plan.tensors if self._given.get(t.output.name) != depends[t.output.name]
        ]
        digests = self._computed(plan, wanted, given, store, progress or Silence(), checks=True)
        self._given = depends
        self.computed += len(wanted)
        return digests

    def tensors_for(
        self, values: Values | Literal["start"], names: Collection[str]
    ) -> dict[str, MemoryTensor]:
        """Some merged tensors, whatever the last evaluation was; it stays the last one."""
        given = complete(self.numbers, values)
        plan = self._planner.planned(given)
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
            settings, scheduler, results = self._planner.begun(plan, wanted, given, progress)
            write_tensors(plan, wanted, store, settings, scheduler, results, done, progress)
            if checks:
                checked = replace(plan, resolved=_compared_with(plan.resolved, given))
                check_assertions(checked, store, scheduler, progress, only=digests.keys())
        finally:
            OPEN_FILES.close()
        return digests

    def differentiable(self, values: Values | Literal["start"]) -> tuple[str, ...]:
        """The numbers that `gradient` has gradients of, at these values: not those that methods count or select with.

        Statistics of the whole model that depend on one are found by `gradient` itself.
        """
        self._slopes.planned(complete(self.numbers, values))
        return tuple(name for name in self.numbers if name not in self._slopes.bound)

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
        and GradientError where there is none: for numbers that are not `differentiable`, and through statistics of the
        whole model.
        """
        given = complete(self.numbers, values)
        plan = self._slopes.planned(given)
        asked = list(given) if of is None else list(of)
        check_numbers(asked, given, self._slopes.bound)
        found: dict[str, list[float]] = {name: [] for name in given}

        def pulled(job: TensorJob, loss: LazyTensor) -> Rounds:
            for number, value in (yield from gradient_rounds(job, loss)).items():
                found[number].append(value)

        self._pull(plan, given, losses, pulled, progress or Silence())
        return {name: math.fsum(found[name]) for name in asked}

    def mask_gradient(
        self,
        values: Values | Literal["start"],
        losses: Mapping[str, LazyTensor],
        of: Collection[str] | None = None,
        progress: Progress | None = None,
    ) -> dict[str, dict[str, LazyTensor]]:
        """dL/dm of free masks m, all or those named in `of`, from dL/dtheta of merged tensors; see `gradient`.

        float32 in the shapes of the masks, by mask and tensor, to be read from a file that is gone with them. Numbers
        per row, column or tensor are summed up in float64. What is counted or selected with masks (the elements that a
        share keeps) is taken as it is. Raises UsageError for gradients of other tensors or masks, and GradientError
        where statistics of the whole model depend on masks.
        """
        asked = list(self.masks) if of is None else list(of)
        unknown = next((name for name in asked if name not in self.masks), None)
        if unknown is not None:
            raise UsageError(f"The recipe has no free mask {shown(unknown)} to take a gradient of.")
        given = complete(self.numbers, values)
        plan = self._slopes.planned(given)
        gradients = MaskGradients([self._slopes.open.masks[name] for name in asked])
        self._pull(plan, given, losses, gradients.rounds, progress or Silence())
        return gradients.tensors()

    def _pull(
        self,
        plan: Plan,
        given: Mapping[str, float],
        losses: Mapping[str, LazyTensor],
        rounds: Callable[[TensorJob, LazyTensor], Rounds],
        progress: Progress,
    ) -> None:
        """Run `rounds` of every computed tensor with its dL/dtheta, with the graphs around the values."""
        tensors = {tensor.output.name: tensor for tensor in plan.tensors}
        check_losses(losses, tensors)
        concerned = [tensors[name] for name in losses]
        settings, scheduler, results = self._slopes.begun(plan, concerned, given, progress)

        def pulled(name: str) -> Job:
            job, _ = tensor_job(plan, [tensors[name]], settings)
            job.adopt(results)
            yield from rounds(job, losses[name])

        wanted = [n for n in losses if tensors[n].work.action is Action.COMPUTE]
        try:
            scheduler.run(pulled(name) for name in wanted)
        finally:
            OPEN_FILES.close()


def _compared_with(resolved: Resolved, values: Mapping[str, float]) -> Resolved:
    """The same with values in what assertions compare with."""
    clauses = tuple(
        replace(clause, references=tuple(with_numbers(f, values) for f in clause.references))
        for clause in resolved.assertions
    )
    return replace(resolved, assertions=clauses)
