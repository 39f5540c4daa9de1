"""The league of methods on a family: with defaults and with a scale tuned on validation, cost beside quality."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weightsmith.comparison.family import VALIDATION, Family, Model
from weightsmith.comparison.family_opening import family_of_models
from weightsmith.comparison.league_entries import Candidate, Entries, Entry, measure_cost, recipe_of
from weightsmith.comparison.standings import (
    AVERAGE,
    DEFAULT,
    TUNED,
    Contestant,
    LeagueRow,
    league_rows,
    mean_normalized,
)
from weightsmith.comparison.tuning import Entrant, LeftOut, enter
from weightsmith.engine import cache_root
from weightsmith.errors import ResourceError, UsageError, WeightsmithError
from weightsmith.evaluation import Evaluation, evaluate
from weightsmith.live import KeptNetwork
from weightsmith.methods import registry
from weightsmith.progress import Progress, Silence
from weightsmith.recipes import Recipe

SCHEMA = 1
Tasks = tuple[str, ...]
# What is tried where nothing is said: the plain ones, and what leads on the test-beds (docs/which-method.md).
METHODS = ("linear", "task_arithmetic", "ties", "iso_c", "tsv_m", "iwudi")
FINISHED, BUDGET, INTERRUPTED = "finished", "budget", "interrupted"


@dataclass(frozen=True, slots=True)
class League:
    """A league table. `ended` is `finished`, `budget` or `interrupted`; methods that were not reached have no rows.

    `models` are the labels of what was merged, `owners` says which of them is the expert of which task, and `is_halved`
    that the scores are of half the items of the suite, the others being for validation.
    """

    family: str
    digest: str
    split: str
    is_halved: bool
    models: tuple[str, ...]
    owners: Mapping[str, str]
    rows: tuple[LeagueRow, ...]
    left_out: tuple[LeftOut, ...]
    ended: str

    @property
    def experts(self) -> tuple[str, ...]:
        """The tasks that have an expert."""
        return tuple(self.owners)

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "schema": SCHEMA,
            "family": self.family,
            "digest": self.digest,
            "split": self.split,
            "halved": self.is_halved,
            "experts": list(self.experts),
            "models": list(self.models),
            "expert_of": dict(self.owners),
            "ended": self.ended,
            "rows": [row.to_mapping() for row in self.rows],
            "left_out": [{"method": out.method, "reason": out.reason} for out in self.left_out],
        }


def default_folder() -> Path:
    """Where measurements are kept unless another place is given."""
    return cache_root() / "leagues"


def league(
    models: Sequence[str | Path],
    suite: str | Path,
    *,
    base: str | Path | None = None,
    validation: str | Path | None = None,
    methods: Sequence[str] = METHODS,
    out: str | Path | None = None,
    budget_seconds: float | None = None,
    device: str = "cpu",
    with_cost: bool = True,
    progress: Progress | None = None,
) -> League:
    """Merge models with every method, each with its defaults and tuned, and rank the results on a suite.

    `models` are checkpoints, adapters on their base or recipes, `base` what they were made from. Scales are tuned on
    the suite `validation`, or, without it, on half of the items of `suite`, which are then not reported. `methods` are
    names, or `["all"]`. Measurements are kept in `out` (default: in the cache). `with_cost=False` does not measure the
    time and memory of merges, which takes a process for each. See `run_league`, and what opening models and suites
    raises.
    """
    family = family_of_models(
        [str(model) for model in models], None if base is None else str(base), suite, validation
    )
    return run_league(
        family,
        methods,
        default_folder() if out is None else Path(out),
        budget_seconds=budget_seconds,
        device=device,
        with_cost=with_cost,
        progress=progress,
    )


def run_league(
    family: Family,
    methods: Sequence[str],
    out: Path,
    *,
    split: str = "test",
    budget_seconds: float | None = None,
    device: str = "cpu",
    with_cost: bool = True,
    progress: Progress | None = None,
) -> League:
    """Merge a family's models with every method and rank the results on a split.

    A method with a scale is merged with its defaults, and again with the scale that scores best on the validation split
    (fixed grids, see `tuning`; the highest normalised score, of equals the smallest scale). The split is for reporting
    only. Measurements are kept in `out` and found again by the same call. After Ctrl-C, or once `budget_seconds` are
    spent, the table has what was finished. Raises UsageError for the split `validation`, which is for tuning, and
    RecipeError for an unknown method.
    """
    if split == VALIDATION:
        raise UsageError(
            "A league is tuned on the validation split; report on another, such as test."
        )
    given = {
        "has_statistics": family.statistics is not None,
        "has_base": family.base is not None,
    }
    entrants = [enter(name, len(family.models), **given) for name in _named(methods)]
    heard = Silence() if progress is None else progress
    bench = _Bench(family, Entries(out), budget_seconds, device, heard)
    return _Run(family, split, bench, with_cost).of(entrants)


def _named(methods: Sequence[str]) -> list[str]:
    return registry.names() if list(methods) == ["all"] else list(dict.fromkeys(methods))


def _best(task: str, found: Mapping[str, Evaluation]) -> str:
    """The label of what scores best on a task, of equals the first."""
    sign = 1 if next(iter(found.values())).score(task).higher_is_better else -1
    return max(found, key=lambda label: sign * found[label].score(task).value)


class _BudgetSpent(Exception):
    pass


class _Bench:
    """Measures candidates, each once."""

    def __init__(
        self,
        family: Family,
        entries: Entries,
        budget_seconds: float | None,
        device: str,
        progress: Progress,
    ) -> None:
        self.family, self.progress = family, progress
        # What measurements are stages of, once their number is known.
        self.measuring: Progress = progress
        self._entries, self._device = entries, device
        self._network = KeptNetwork()
        self._ends = None if budget_seconds is None else time.monotonic() + budget_seconds

    def measure(self, candidate: Candidate) -> Entry:
        """What a candidate is on its split."""
        found = self._measured(candidate)
        return Entry(self.family.part(found.evaluation, candidate.split), found.cost)

    def _measured(self, candidate: Candidate) -> Entry:
        digest = candidate.digest(self.family)
        found = self._entries.find(digest)
        if found is None:
            if self._ends is not None and time.monotonic() >= self._ends:
                raise _BudgetSpent
            stage = self.measuring.begin(candidate.title)
            made = self._made(candidate)
            self._entries.keep(digest, candidate.title, made)
            stage.end()
            return made
        self.measuring.begin(candidate.title).end(kept=True)
        return found

    def _made(self, candidate: Candidate) -> Entry:
        if candidate.method is None:
            return Entry(
                self._scored(self.family.member(candidate.member).reference, candidate), None
            )
        recipe = recipe_of(candidate, self.family)
        if not candidate.with_cost:
            return Entry(self._scored(Recipe.load(recipe), candidate), None)
        # The same merge may have been scored already, as one of those that a scale was tuned with.
        known = self._entries.find(replace(candidate, with_cost=False).digest(self.family))
        cost = measure_cost(recipe)
        scored = known.evaluation if known else self._scored(Recipe.load(recipe), candidate)
        return Entry(scored, cost)

    def _scored(self, subject: str | Recipe, candidate: Candidate) -> Evaluation:
        return evaluate(
            subject,
            self.family.suite(candidate.split),
            tasks=candidate.tasks,
            device=self._device,
            threads=1,
            # What is measured is kept as an entry.
            cache=False,
            network=self._network,
        )


class _Run:
    def __init__(self, family: Family, split: str, bench: _Bench, with_cost: bool) -> None:
        self._family, self._split, self._bench = family, split, bench
        self._with_cost = with_cost
        self._validation_experts: dict[str, Evaluation] = {}
        self._all_tasks: Tasks = ()

    def of(self, entrants: Sequence[Entrant | LeftOut]) -> League:
        taking = [entrant for entrant in entrants if isinstance(entrant, Entrant)]
        left_out = [entrant for entrant in entrants if isinstance(entrant, LeftOut)]
        measurements = self._measurements(taking)
        self._bench.measuring = self._bench.progress.begin("measuring", measurements, "candidate")
        contestants: list[Contestant] = []
        ended, base, experts = FINISHED, None, None
        try:
            self._assign()
            if self._family.base is not None:
                base = self._bench.measure(self._member(self._family.base)).evaluation
            experts = self._experts(self._split)
            contestants.append(self._average())
            for entrant in taking:
                self._enter(entrant, contestants, left_out)
        except _BudgetSpent:
            ended = BUDGET
        except KeyboardInterrupt:
            ended = INTERRUPTED
            if experts is None:
                raise
        if experts is None:
            raise ResourceError(
                "The budget was spent before base and experts were scored; run again with a larger one."
            )
        self._bench.measuring.end()
        rows = league_rows(base, experts, contestants)
        return League(
            self._family.name,
            self._family.digest,
            self._split,
            self._family.is_halved,
            tuple(model.label for model in self._family.models),
            self._family.owners,
            rows,
            tuple(left_out),
            ended,
        )

    def _measurements(self, taking: Sequence[Entrant]) -> int:
        family = self._family
        number = len(family.models if family.unassigned else self._tasks_by_owner())
        has_tuning = any(entrant.scale for entrant in taking)
        own = sum(1 + (len(e.grid) + 1 if e.scale else 0) for e in taking)
        average, base = 1, int(family.base is not None)
        assigning = len(family.models) if family.unassigned else 0
        return base + average + number + assigning + (number if has_tuning else 0) + own

    def _assign(self) -> None:
        """Find the expert of every task that none is named like: the model that scores best on validation."""
        family = self._family
        if not family.unassigned:
            return
        tasks = (*family.owners, *family.unassigned)
        found = {
            model.label: self._bench.measure(self._member(model, VALIDATION, tasks)).evaluation
            for model in family.models
        }
        best = {task: _best(task, found) for task in family.unassigned}
        self._all_tasks = tasks
        self._family = family.assigned(best)
        self._bench.family = self._family

    def _member(self, model: Model, split: str | None = None, tasks: Tasks = ()) -> Candidate:
        return Candidate(split or self._split, None, model.label, tasks=tasks)

    def _tasks_by_owner(self) -> dict[str, Tasks]:
        """The tasks of every model that is the expert of one, in the order of the models."""
        owners = self._family.owners
        labels = [model.label for model in self._family.models]
        owned = {
            label: tuple(t for t, owner in owners.items() if owner == label) for label in labels
        }
        return {label: tasks for label, tasks in owned.items() if tasks}

    def _enter(
        self, entrant: Entrant, contestants: list[Contestant], left_out: list[LeftOut]
    ) -> None:
        """Add the rows of a method; one that refuses the family's tensors is left out, with its reason."""
        try:
            contestants.append(self._merged(entrant, DEFAULT, entrant.defaults))
            if entrant.scale is not None:
                best = self._tuned(entrant, entrant.scale)
                given = {**entrant.defaults, entrant.scale: best}
                at_edge = best in (entrant.grid[0], entrant.grid[-1])
                contestants.append(self._merged(entrant, TUNED, given, at_edge=at_edge))
            else:
                # Nothing to tune: with its defaults it takes part among the tuned ones too.
                last = contestants[-1]
                contestants.append(
                    Contestant(last.name, TUNED, last.parameters, last.evaluation, last.cost)
                )
        except WeightsmithError as problem:
            left_out.append(LeftOut(entrant.method, str(problem)))

    def _merged(
        self,
        entrant: Entrant,
        setting: str,
        parameters: Mapping[str, Any],
        *,
        at_edge: bool = False,
    ) -> Contestant:
        entry = self._bench.measure(
            Candidate(
                self._split,
                entrant.method,
                parameters=parameters,
                has_base=entrant.has_base,
                with_cost=self._with_cost,
                measured=entrant.measured,
            )
        )
        return Contestant(
            entrant.method, setting, parameters, entry.evaluation, entry.cost, at_edge
        )

    def _average(self) -> Contestant:
        candidate = Candidate(self._split, "linear", has_base=False, with_cost=self._with_cost)
        entry = self._bench.measure(candidate)
        return Contestant(AVERAGE, AVERAGE, {}, entry.evaluation, entry.cost)

    def _experts(self, split: str) -> dict[str, Evaluation]:
        """Every expert on its own tasks; on all that models were assigned by, where they were measured on those."""
        found: dict[str, Evaluation] = {}
        for label, tasks in self._tasks_by_owner().items():
            model = self._family.member(label)
            candidate = self._member(model, split, self._all_tasks or tasks)
            found |= dict.fromkeys(tasks, self._bench.measure(candidate).evaluation)
        return {task: found[task] for task in self._family.owners}

    def _tuned(self, entrant: Entrant, scale: str) -> float:
        if not self._validation_experts:
            self._validation_experts = self._experts(VALIDATION)
        scored = [(self._on_validation(entrant, scale, value), -value) for value in entrant.grid]
        return -max(scored)[1]

    def _on_validation(self, entrant: Entrant, scale: str, value: float) -> float:
        candidate = Candidate(
            VALIDATION,
            entrant.method,
            parameters={**entrant.defaults, scale: value},
            has_base=entrant.has_base,
            tasks=self._family.experts,
            measured=entrant.measured,
        )
        return mean_normalized(self._bench.measure(candidate).evaluation, self._validation_experts)
