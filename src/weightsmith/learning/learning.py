"""Learning a recipe: its free numbers found from data, and the ordinary recipe that they make."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from weightsmith.adapters import open_model
from weightsmith.checkpoints import tensors_fingerprint
from weightsmith.engine import Plan, make_plan
from weightsmith.errors import RecipeError, UsageError
from weightsmith.learning.learned_files import (
    LOG_KIND,
    RECIPE_KIND,
    log_place,
    placed_recipe,
    write_log,
    write_recipe,
)
from weightsmith.learning.learner import Learner, StudyState, TaskLosses
from weightsmith.learning.learning_data import (
    TaskData,
    chosen_data,
    files_of,
    read_task,
)
from weightsmith.learning.objectives import Objective, parse_objective
from weightsmith.learning.optimisers import OptimizerSettings, make_optimiser
from weightsmith.learning.parametrisations import hulls
from weightsmith.learning.settings import LearningSettings, Preset, find_preset
from weightsmith.learning.study import Study
from weightsmith.learning.teachers import teachers_of
from weightsmith.learning.teaching import Taught, read_taught, teach
from weightsmith.live import LiveMerge, load_model
from weightsmith.methods import registry
from weightsmith.progress import Progress, Silence
from weightsmith.publishing import check_file
from weightsmith.recipes import Recipe, has_free, numbers_of
from weightsmith.statistics import DataChoice, Samples
from weightsmith.tensors import expanded
from weightsmith.version import __version__
from weightsmith.wording import counted

# Items that a step may see, however few there are: what a preset sets, and more.
_MOST_REPEATED = 1024


@dataclass(frozen=True, slots=True)
class Learned:
    """What was learned: the ordinary recipe and its file, the values of the free numbers, and the log of the run.

    `loss` and `validation` are those of the values, the former of the items of the last step; `stopped` says why
    learning ended, `kept` the step whose values these are.
    """

    recipe: str
    log: str
    values: Mapping[str, float]
    steps: int
    kept: int
    loss: float
    validation: float | None
    stopped: str

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)


def learn(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    *,
    data: str | Path | Samples | Sequence[str | Path | Samples],
    out: str | Path,
    preset: str | None = None,
    validation: Sequence[str | Path | Samples] = (),
    teachers: Mapping[str, str] | None = None,
    tasks: Sequence[str] = (),
    limit: int = 256,
    context: int | None = None,
    on_test: bool = False,
    memory_bytes: int | None = None,
    threads: int | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    progress: Progress | None = None,
    **settings: Any,
) -> Learned:
    """Learn the free numbers of a recipe from data, and write the ordinary recipe that they make to `out`.

    Weights are materialised once for every step, gradients go to the weights, and from there to the numbers in one pass
    over the models' files: memory is that of one model, its gradient, and the merge's `memory_bytes`, however many
    models there are. `data` are suites (all their tasks, or `tasks`), texts, JSON lines, arrow files or Samples; each
    is a task, and the losses of the tasks are added. `preset` is one of `PRESETS`, and frees the numbers of a recipe
    that has none; `settings` are the fields of `LearningSettings`, with those of `OptimizerSettings` under `optimizer`.
    `validation` is measured now and then, and the best values there are kept. `teachers` are the models that tasks are
    learned from, by task; those of the recipe have the name of the task, or its place. The same call goes on with what
    an earlier one left, after a kill too; data, splits, losses and numbers go to a log beside the recipe.

    Raises UsageError for data that are none of the model's or held out, a setting that is none, and numbers without a
    gradient; NonFiniteError for a loss that is NaN; OutputError for an output that must not be replaced; and what
    planning a merge raises.
    """
    given = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    chosen = None if preset is None else find_preset(preset)
    how = _settings(chosen, settings)
    opened = _freed(given, chosen)
    objective = parse_objective(how.objective, how.temperature)
    choose = partial(
        chosen_data, tasks=tasks, limit=limit, context=context, seed=how.seed, on_test=on_test
    )
    seen = choose([data] if isinstance(data, (str, Path, Samples)) else data)
    compared = choose(validation) if validation else []
    taught_by: dict[str, str] = {}
    if objective.has_teachers:
        taught_by = teachers_of(opened, [n for n, _ in (*seen, *compared)], teachers or {})
    bounds: dict[str, Any] = {} if memory_bytes is None else {"memory_bytes": memory_bytes}
    plan = make_plan(opened, threads=threads, device=device, **bounds)
    run = LearningRun(opened, plan, how, objective, seen, compared, taught_by, (device, dtype))
    return run.learned(expanded(out), progress or Silence())


def _settings(preset: Preset | None, given: Mapping[str, Any]) -> LearningSettings:
    """The settings of a preset, with those that are given in their places."""
    known = {} if preset is None else dict(preset.settings)
    optimizer = {**known.pop("optimizer", {}), **given.get("optimizer", {})}
    fields = {**known, **{name: v for name, v in given.items() if name != "optimizer"}}
    for names, owner in ((fields, LearningSettings), (optimizer, OptimizerSettings)):
        for name in names:
            if name not in owner.__slots__:
                raise UsageError(
                    f"There is no setting {name!r}; there are {', '.join(owner.__slots__)}."
                )
    found = LearningSettings(**fields, optimizer=OptimizerSettings(**optimizer))
    for name in ("steps", "batch_size", "check_every"):
        if getattr(found, name) < 1:
            raise UsageError(f"{name} is a whole number from 1, not {getattr(found, name)}.")
    _require_finite({**found.described(), **found.described()["optimizer"]})
    return found


def _require_finite(settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{name} is a finite number, not {value}.")


def _freed(recipe: Recipe, preset: Preset | None) -> Recipe:
    """A recipe with free numbers: its own, or those that a preset frees."""
    mapping = recipe.to_mapping()
    if preset is None or has_free(recipe.document) or "models" not in mapping:
        return recipe
    own = {**mapping, "parameters": {**mapping.get("parameters", {}), **preset.frees}}
    own["models"] = [_without(entry, preset.frees) for entry in mapping["models"]]
    _require_known(recipe.document.merge_method, preset)
    return replace(Recipe.load(own, base_dir=recipe.base_dir), base_dir=recipe.base_dir)


def _require_known(method: str | None, preset: Preset) -> None:
    """Raise UsageError where a method has no parameter that a preset frees."""
    for name in () if method is None else preset.frees:
        if method is not None and name not in registry.get(method).parameters:
            raise UsageError(
                f"The preset frees {name!r}, which {method} has not; write the numbers that are to be learned into the "
                "recipe, as {free: [LOW, HIGH], start: NUMBER}."
            )


def _without(entry: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in entry.get("parameters", {}).items() if k not in names}
    rest = {key: value for key, value in entry.items() if key != "parameters"}
    return {**rest, "parameters": kept} if kept else rest


@dataclass(frozen=True, slots=True, eq=False)
class LearningRun:
    """All that a run needs, opened."""

    recipe: Recipe
    plan: Plan
    settings: LearningSettings
    objective: Objective
    data: Sequence[tuple[str, DataChoice]]
    validation: Sequence[tuple[str, DataChoice]]
    teachers: Mapping[str, str]
    where: tuple[str, str]

    def learned(self, out: Path, progress: Progress) -> Learned:
        """Learn, and put the recipe and its log in their places."""
        if self.plan.free is None:
            raise RecipeError(
                "The recipe has no free numbers, so there is nothing to learn; write one as "
                "{free: [LOW, HIGH], start: NUMBER}, or name a --preset, which frees `weight` of a list of models."
            )
        if self.plan.free.masks:
            raise RecipeError(
                f"The free mask {next(iter(self.plan.free.masks))!r} has no value, and masks cannot be learned in this "
                "version; name a file of kind mask under the model's `statistics:`, or write {mask: NUMBER}."
            )
        reads = (*self.plan.inputs, *files_of((*self.data, *self.validation)), *self._taught_by())
        log = log_place(out)
        check_file(out, RECIPE_KIND, reads)
        check_file(log, LOG_KIND, reads)
        optimiser = make_optimiser(
            self.settings.optimizer, self.settings.parametrisation, self.plan.free.numbers
        )
        device, dtype = self.where
        merge = LiveMerge(self.plan, device=device, dtype=dtype, filled=False)
        self._require_gradients(merge)
        tasks = [read_task(merge.model, n, c, self.objective) for n, c in self.data]
        compared = [read_task(merge.model, n, c, self.objective) for n, c in self.validation]
        for task in tasks:
            self._require_batches(task)
        with Study(out, self._request(tasks, compared)) as study:
            learner = Learner(
                merge,
                self._losses(tasks, study, "data", progress),
                self._losses(compared, study, "validation", progress),
                self.settings,
                optimiser,
                study,
                self._experts(),
            )
            state = learner.run(progress)
            values = learner.values() if state.best is None else state.best
            found = self._result(out, log, state, values)
            filled = placed_recipe(self.plan.free.filled(values), out)
            write_recipe(out, filled, log, reads)
            write_log(log, self._record(tasks, compared, state, found), reads)
            study.discard()
        return found

    def _taught_by(self) -> Iterator[Path]:
        """Where the teachers lie, as far as they are local."""
        for teacher in self.teachers.values():
            yield from open_model(teacher).inputs

    def _require_gradients(self, merge: LiveMerge) -> None:
        having = set(merge.differentiable)
        lacking = [name for name in merge.numbers if name not in having]
        if lacking:
            raise UsageError(
                f"The free number {lacking[0]!r} counts or selects, so there is no gradient to learn it by; give it a "
                "value."
            )

    def _require_batches(self, task: TaskData) -> None:
        count, size = len(task.samples.items), self.settings.batch_size
        most = max(count, _MOST_REPEATED)
        if size > most:
            raise UsageError(
                f"A step takes {size} items of {task.name!r}, which has {counted(count, 'item')}; give a batch_size of "
                f"{most} at most."
            )

    def _experts(self) -> int:
        """How many numbers are called alike, at most: the experts, where they have their own."""
        assert self.plan.free is not None
        try:
            return max(map(len, hulls(list(self.plan.free.numbers))))
        except UsageError:
            return 1

    def _losses(
        self, tasks: Sequence[TaskData], study: Study, part: str, progress: Progress
    ) -> list[TaskLosses]:
        return [
            TaskLosses(
                task, self.objective, self._taught(task, study, f"{part}-{number}", progress)
            )
            for number, task in enumerate(tasks)
        ]

    def _taught(self, task: TaskData, study: Study, name: str, progress: Progress) -> Taught | None:
        if not self.objective.has_teachers:
            return None
        found = read_taught(study.taught, name)
        if found is not None:
            return found
        device, dtype = self.where
        teacher = load_model(self.teachers[task.name], device=device, dtype=dtype)
        own = read_task(teacher, task.name, task.choice, self.objective)
        if [s.form for s in own.samples.items] != [s.form for s in task.samples.items]:
            raise UsageError(
                f"The teacher {teacher.name!r} reads the items of {task.name!r} otherwise than the merge does; name "
                "one with the same tokenizer and inputs."
            )
        blocks = self.objective.reads_blocks
        return teach(study.taught, name, teacher, own, blocks=blocks, progress=progress)

    def _request(self, tasks: Sequence[TaskData], compared: Sequence[TaskData]) -> str:
        """The digest of all that decides what is learned."""
        content = {
            "version": __version__,
            "recipe": self.recipe.digest(),
            "plan": self.plan.digest,
            "settings": self.settings.described(),
            "teachers": {
                task: [teacher, tensors_fingerprint(open_model(teacher).tensors)]
                for task, teacher in self.teachers.items()
            },
            "where": self.where,
            "data": [[t.name, t.samples.digest] for t in tasks],
            "validation": [[t.name, t.samples.digest] for t in compared],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _result(
        self, out: Path, log: Path, state: StudyState, values: Mapping[str, float]
    ) -> Learned:
        losses = [entry["loss"] for entry in state.log if "loss" in entry]
        has_best = state.best is not None
        return Learned(
            str(out),
            str(log),
            dict(values),
            state.step,
            state.best_step if has_best else state.step,
            losses[-1],
            state.best_loss if has_best else None,
            state.reason,
        )

    def _record(
        self,
        tasks: Sequence[TaskData],
        compared: Sequence[TaskData],
        state: StudyState,
        found: Learned,
    ) -> dict[str, Any]:
        def told(parts: Sequence[TaskData]) -> list[dict[str, Any]]:
            return [
                {"task": t.name, "data": t.samples.described, "file": str(t.choice.source)}
                for t in parts
            ]

        return {
            "weightsmith": __version__,
            "recipe": found.recipe,
            "from": self.recipe.to_mapping(),
            "settings": self.settings.described(),
            "data": told(tasks),
            "validation": told(compared),
            "teachers": dict(self.teachers),
            "stopped": found.stopped,
            "kept": found.kept,
            "values": dict(found.values),
            "layers": _layers(self.plan),
            "log": state.log,
        }


def _layers(plan: Plan) -> dict[str, int | None]:
    """The layer of every number that is of one layer, or of what is in none."""
    assert plan.free is not None
    resolved = plan.free.resolved
    found: dict[str, set[int | None]] = {}
    for output in () if resolved is None else resolved.outputs:
        for number in numbers_of([output]):
            found.setdefault(number.name, set()).add(output.place.layer)
    return {name: next(iter(layers)) for name, layers in found.items() if len(layers) == 1}
