"""Two versions of a model on one suite: scores, tests, flips, and what is left of the parents' skill."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightsmith.comparison.flips import Flips, Graded, find_flips, find_regressions
from weightsmith.comparison.paired import (
    McNemar,
    PairedDifference,
    flips_difference,
    mcnemar_of,
    paired_difference,
)
from weightsmith.comparison.resampling import Draws, aligned, draws_of
from weightsmith.comparison.skill import SkillReport, measure_skill
from weightsmith.errors import UsageError
from weightsmith.evaluation import Evaluation, Floats, ItemScores, TaskScore, evaluate, read_saved
from weightsmith.live import KeptNetwork
from weightsmith.wording import shown

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class ScoreChange:
    """Old and new scores of the same items, with tests; `flips` for right and wrong, else `graded`."""

    items: int
    old: float
    new: float
    difference: PairedDifference
    flips: Flips | None
    mcnemar: McNemar | None
    graded: Graded | None

    @property
    def p_value(self) -> float:
        """McNemar's mid-p where items are right or wrong, else that of the paired bootstrap: one for each change."""
        return self.difference.p_value if self.mcnemar is None else self.mcnemar.mid_p

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "items": self.items,
            "old": self.old,
            "new": self.new,
            "difference": self.difference.to_mapping(),
            "mcnemar": None if self.mcnemar is None else self.mcnemar.to_mapping(),
            "flips": None if self.flips is None else self.flips.to_mapping(),
            "graded": None if self.graded is None else self.graded.to_mapping(),
        }


@dataclass(frozen=True, slots=True)
class TaskComparison:
    """One task: both scores with their intervals, the change, and the change in every slice."""

    task: str
    metric: str
    group: str | None
    old: TaskScore
    new: TaskScore
    change: ScoreChange
    slices: tuple[tuple[str, ScoreChange], ...] = ()

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "task": self.task,
            "metric": self.metric,
            "group": self.group,
            "old": self.old.to_mapping(),
            "new": self.new.to_mapping(),
            "change": self.change.to_mapping(),
            "slices": [{"slice": name, **change.to_mapping()} for name, change in self.slices],
        }


@dataclass(frozen=True, slots=True)
class Against:
    """A model compared with one that it replaces or was made of."""

    subject: str
    tasks: tuple[TaskComparison, ...]

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"subject": self.subject, "tasks": [task.to_mapping() for task in self.tasks]}


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `compare` found: `new` against `old`, against each parent, and the skill that it keeps (None without parents
    and base).
    """

    old: str
    new: str
    suite: str
    tasks: tuple[TaskComparison, ...]
    parents: tuple[Against, ...]
    base: str | None
    skill: SkillReport | None

    def mean(self, figure: Callable[[TaskComparison], float | None]) -> float | None:
        """The mean of a figure over the tasks that have it, each counting alike; None if none has."""
        known = [value for task in self.tasks if (value := figure(task)) is not None]
        return sum(known) / len(known) if known else None

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "schema": SCHEMA,
            "old": self.old,
            "new": self.new,
            "base": self.base,
            "suite": self.suite,
            "tasks": [task.to_mapping() for task in self.tasks],
            "parents": [parent.to_mapping() for parent in self.parents],
            "skill": None if self.skill is None else self.skill.to_mapping(),
        }


def compare(
    old: Any,
    new: Any,
    suite: str | Path | None = None,
    *,
    parents: Sequence[Any] = (),
    base: Any = None,
    tolerance: float = 0.0,
    **options: Any,
) -> Comparison:
    """Compare two models on a suite, the way their users notice.

    `old`, `new`, `parents` and `base` are checkpoints, recipes, saved evaluations (JSON files) or evaluations; `suite`
    may be left out if all are evaluations. An item of a graded metric counts as changed when its score moves by more
    than `tolerance`. `options` are those of `evaluate` (device, cache, batch_size). Raises UsageError where the models
    were not evaluated on the same items.
    """
    if isinstance(parents, (str, Path)):
        raise UsageError(f"parents is a list of models or evaluations, not {shown(parents)}.")
    named = [old, new, *parents, *([base] if base is not None else [])]
    shared = {"network": KeptNetwork(), **options}
    found = [as_evaluation(subject, suite, **shared) for subject in named]
    last = found[-1] if base is not None else None
    return compare_evaluations(
        found[0], found[1], parents=found[2 : 2 + len(parents)], base=last, tolerance=tolerance
    )


def compare_evaluations(
    old: Evaluation,
    new: Evaluation,
    *,
    parents: Sequence[Evaluation] = (),
    base: Evaluation | None = None,
    tolerance: float = 0.0,
) -> Comparison:
    """Compare evaluations on the same items; see `compare`."""
    draws = Draws([old, new, *parents, *([base] if base is not None else [])])
    return Comparison(
        old=old.subject,
        new=new.subject,
        suite=new.suite,
        tasks=_tasks(old, new, draws, tolerance),
        parents=tuple(
            Against(parent.subject, _tasks(parent, new, draws, tolerance)) for parent in parents
        ),
        base=None if base is None else base.subject,
        skill=(
            measure_skill(new, parents, base, draws=draws) if parents or base is not None else None
        ),
    )


def as_evaluation(subject: Any, suite: str | Path | None = None, **options: Any) -> Evaluation:
    """An evaluation as it is, one read from a JSON file, or that of a checkpoint or recipe on a suite.

    Raises UsageError if there is something to evaluate but no suite.
    """
    if isinstance(subject, Evaluation):
        return subject
    if isinstance(subject, (str, Path)) and _is_json(Path(subject)):
        return read_evaluation(Path(subject))
    if suite is None:
        if Path(subject).suffix == ".json":
            raise UsageError(
                f"There is no file {shown(subject)}; give what `evaluate --save` wrote."
            )
        raise UsageError(
            f"{shown(subject)} is no saved evaluation, so it must be evaluated: name a suite (`--suite`)."
        )
    return evaluate(subject, suite, **options)


def _is_json(path: Path) -> bool:
    return path.suffix == ".json" and path.is_file()


def read_evaluation(path: Path) -> Evaluation:
    """The evaluation that `weightsmith evaluate --save` wrote; raises UsageError for another file."""
    content = read_saved(path, "evaluate")
    if "scores" not in content:
        raise UsageError(f"{shown(path)} holds no evaluation; give what `evaluate --save` wrote.")
    return Evaluation.from_mapping(content)


def _tasks(
    old: Evaluation, new: Evaluation, draws: Draws, tolerance: float
) -> tuple[TaskComparison, ...]:
    return tuple(_task(old, new, score, draws, tolerance) for score in new.scores)


def _task(
    old: Evaluation, new: Evaluation, score: TaskScore, draws: Draws, tolerance: float
) -> TaskComparison:
    task = score.task
    first, second = old.items[task], aligned(old, new, task)

    def resampled() -> tuple[Floats, Floats]:
        return draws.score(old, task), draws.score(new, task)

    return TaskComparison(
        task=task,
        metric=score.metric,
        group=score.group,
        old=old.score(task),
        new=score,
        change=_change(first, second, resampled, tolerance),
        slices=_slices(first, second, tolerance),
    )


def _change(
    old: ItemScores,
    new: ItemScores,
    resampled: Callable[[], tuple[Floats, Floats]],
    tolerance: float,
) -> ScoreChange:
    """The change between scores of the same items; `resampled` gives the draws of both, which flips do without."""
    higher = new.higher_is_better
    if new.binary:
        flips = find_flips(old, new)
        difference = flips_difference(flips, higher_is_better=higher)
        return ScoreChange(
            len(old), old.value, new.value, difference, flips, mcnemar_of(flips), graded=None
        )
    difference = paired_difference(*resampled(), higher_is_better=higher)
    graded = find_regressions(old, new, tolerance)
    return ScoreChange(len(old), old.value, new.value, difference, None, None, graded)


def _resampled(old: ItemScores, new: ItemScores) -> Callable[[], tuple[Floats, Floats]]:
    return lambda: (draws_of(old), draws_of(new))


def _slices(
    old: ItemScores, new: ItemScores, tolerance: float
) -> tuple[tuple[str, ScoreChange], ...]:
    """The change within every slice, in the order of their names."""
    named = new.slices or old.slices
    if named is None:
        return ()
    found = []
    for name in sorted(set(named)):
        places = [i for i, own in enumerate(named) if own == name]
        first, second = old.chosen(places), new.chosen(places)
        found.append((name, _change(first, second, _resampled(first, second), tolerance)))
    return tuple(found)
