"""Gates: what a comparison must show for a new version to pass, as short expressions.

    NAME OP NUMBER              the mean over the tasks that have the figure     negative_flips < 0.02
    NAME.TASK OP NUMBER         one task                                         accuracy.greek >= 0.8
    NAME.* OP NUMBER            every task that has it                           retained.* > 0.5

OP is <, <=, > or >=. NUMBER is a decimal number or a percentage such as 2%. A figure that a comparison does not know
fails its gate.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.comparison.versions import Comparison, TaskComparison
from weightsmith.errors import UsageError
from weightsmith.evaluation import METRICS_OF
from weightsmith.naming import nearest

Figure = Callable[[Comparison, TaskComparison], "float | None"]

_EXPRESSION = re.compile(
    r"\s*(?P<name>[A-Za-z_][A-Za-z0-9_@]*)(?:\.(?P<task>[^\s<>=]+))?\s*(?P<op><=|>=|<|>)\s*"
    r"(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?P<percent>\s*%)?\s*"
)
_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def _flip(read: Callable[[Any], float | None]) -> Figure:
    return lambda _, task: None if task.change.flips is None else read(task.change.flips)


def _graded(read: Callable[[Any], float]) -> Figure:
    return lambda _, task: None if task.change.graded is None else read(task.change.graded)


def _improvement(_: Comparison, task: TaskComparison) -> float:
    sign = 1.0 if task.new.higher_is_better else -1.0
    return sign * task.change.difference.estimate.value


def _skill(name: str) -> Figure:
    def read(comparison: Comparison, task: TaskComparison) -> float | None:
        skill = None if comparison.skill is None else comparison.skill.of_expert(task.task)
        estimate = None if skill is None else getattr(skill, name)
        return None if estimate is None else float(estimate.value)

    return read


def _change_from_base(group: str, sign: float) -> Figure:
    def read(comparison: Comparison, task: TaskComparison) -> float | None:
        if comparison.skill is None or task.group != group:
            return None
        estimate = comparison.skill.changes.get(task.task)
        return None if estimate is None else sign * estimate.value

    return read


# What each name is, for one task; without a task it is the mean over those that have it.
FIGURES: Mapping[str, Figure] = {
    "negative_flips": _flip(lambda flips: flips.negative_rate),
    "positive_flips": _flip(lambda flips: flips.positive_rate),
    "relative_negative_flips": _flip(lambda flips: flips.relative_negative_rate),
    "backward_trust": _flip(lambda flips: flips.backward_trust),
    "backward_errors": _flip(lambda flips: flips.backward_errors),
    "inconsistency": _flip(lambda flips: flips.inconsistency),
    "changed_wrong": _flip(lambda flips: flips.changed_wrong_rate),
    "regression": _graded(lambda graded: graded.regression),
    "gain": _graded(lambda graded: graded.gain),
    "overall_regression": _graded(lambda graded: graded.overall_regression),
    "overall_gain": _graded(lambda graded: graded.overall_gain),
    "improvement": _improvement,
    "retained": _skill("retained"),
    "normalized_score": _skill("normalized"),
    "forgetting": _change_from_base("general", -1.0),
    "generalization": _change_from_base("unseen", 1.0),
}
_NEEDS = {
    "retained": "--parents and --base",
    "normalized_score": "--parents",
    "forgetting": "--base and tasks of group `general`",
    "generalization": "--base and tasks of group `unseen`",
    "inconsistency": "answers of both models",
    "changed_wrong": "answers of both models",
}


@dataclass(frozen=True, slots=True)
class Gate:
    """A parsed gate; `task` is None for the mean, `*` for every task."""

    text: str
    name: str
    task: str | None
    op: str
    bound: float


@dataclass(frozen=True, slots=True)
class GateResult:
    """Whether a gate holds, for the mean (`task` None) or for one task; `value` None was not known, so it fails."""

    gate: Gate
    task: str | None
    value: float | None
    passed: bool

    @property
    def sentence(self) -> str:
        """What was found, in words."""
        place = self.gate.name if self.task is None else f"{self.gate.name}.{self.task}"
        if self.value is None:
            needs = _NEEDS.get(self.gate.name)
            return f"{place} is not known" + (f": it needs {needs}" if needs else "")
        return f"{place} is {self.value:.6g}"

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "gate": self.gate.text,
            "task": self.task,
            "value": self.value,
            "passed": self.passed,
            "sentence": self.sentence,
        }


def parse_gate(text: str) -> Gate:
    """Read a gate; raises UsageError that says what is wrong with it."""
    matched = _EXPRESSION.fullmatch(text)
    if matched is None:
        raise UsageError(
            f"The gate {text!r} is not of the form NAME[.TASK] OP NUMBER with OP one of <, <=, >, >=, such as "
            "negative_flips<0.02."
        )
    name = matched["name"]
    if name not in FIGURES and not _is_metric(name):
        near = nearest(name, [*FIGURES, *_metric_names()])
        hint = f"did you mean {near!r}?" if near else f"there are {', '.join(FIGURES)} and metrics."
        raise UsageError(f"The gate {text!r} asks for {name!r}, which is unknown; {hint}")
    bound = float(matched["number"])
    if not math.isfinite(bound):
        raise UsageError(f"The gate {text!r} has a bound that is not finite; give a smaller one.")
    scale = 0.01 if matched["percent"] else 1.0
    return Gate(text.strip(), name, matched["task"], matched["op"], bound * scale)


def check_gates(comparison: Comparison, gates: Sequence[Gate]) -> tuple[GateResult, ...]:
    """The results of all gates, one for each task under `*`.

    Raises UsageError for a task that the comparison does not have, and for a metric that no task is scored by.
    """
    return tuple(result for gate in gates for result in _results(comparison, gate))


def _results(comparison: Comparison, gate: Gate) -> list[GateResult]:
    figure = _figure(comparison, gate)
    tasks = {task.task: task for task in comparison.tasks}
    if gate.task is None:
        return [_judged(gate, None, comparison.mean(lambda task: figure(comparison, task)))]
    if gate.task in tasks:
        return [_judged(gate, gate.task, figure(comparison, tasks[gate.task]))]
    if gate.task != "*":
        near = nearest(gate.task, tasks)
        hint = f"did you mean {near!r}?" if near else f"there are {', '.join(tasks)}."
        raise UsageError(f"The gate {gate.text!r} names the unknown task {gate.task!r}; {hint}")
    found = [(name, figure(comparison, task)) for name, task in tasks.items()]
    known = [_judged(gate, name, value) for name, value in found if value is not None]
    return known or [_judged(gate, None, None)]


def _judged(gate: Gate, task: str | None, value: float | None) -> GateResult:
    passed = value is not None and _OPERATORS[gate.op](value, gate.bound)
    return GateResult(gate, task, value, passed)


def _figure(comparison: Comparison, gate: Gate) -> Figure:
    if gate.name in FIGURES:
        return FIGURES[gate.name]
    scored = list(dict.fromkeys(task.metric for task in comparison.tasks))
    if gate.name not in scored:
        raise UsageError(
            f"The gate {gate.text!r} asks for {gate.name!r}, but the tasks are scored by {', '.join(scored)}."
        )
    return lambda _, task: task.new.value if task.metric == gate.name else None


def _metric_names() -> list[str]:
    return list(dict.fromkeys(name for names in METRICS_OF.values() for name in names))


def _is_metric(name: str) -> bool:
    return name in _metric_names() or re.fullmatch(r"[a-z]+@[1-9][0-9]*", name) is not None
