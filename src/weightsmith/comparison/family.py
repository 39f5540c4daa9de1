"""A family as a league sees it: a base, models to merge, which of them is the expert of which task, and suites."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from weightsmith.comparison.halves import WHOLE, half_of
from weightsmith.errors import UsageError
from weightsmith.evaluation import Evaluation
from weightsmith.testbeds import file_digest
from weightsmith.wording import counted, shown

VALIDATION, TEST = "validation", "test"


@dataclass(frozen=True, slots=True)
class Model:
    """A model of a family: what it is called, what it is opened by, and a digest of what it is."""

    label: str
    reference: str
    digest: str


@dataclass(frozen=True, slots=True)
class Family:
    """What is merged and what it is scored on.

    `models` are merged in this order; without a `base` methods that need one are left out. `owners` maps the tasks
    that have an expert to its label, and `unassigned` are tasks whose expert is the model that scores best on them,
    which the league finds out on validation. `suites` maps splits to suite files; where one file stands for both
    splits, `is_halved` says that half of every task's items are for validation and the others for the report. `folder`
    is where a family lies that was built as a whole. `digest` is over all weights and data. `statistics` is a folder
    of what was measured on the models, as files LABEL.KIND.safetensors (of the base over an expert's data: with that
    one's label), and `statistics_digest` over the bytes of these.
    """

    name: str
    digest: str
    base: Model | None
    models: tuple[Model, ...]
    owners: Mapping[str, str]
    suites: Mapping[str, Path]
    unassigned: tuple[str, ...] = ()
    is_halved: bool = False
    folder: Path | None = None
    suite_digests: Mapping[str, str] = field(default_factory=dict)
    statistics: Path | None = None
    statistics_digest: str = ""

    @property
    def experts(self) -> tuple[str, ...]:
        """The tasks that have an expert, in the family's order."""
        return tuple(self.owners)

    @property
    def members(self) -> tuple[Model, ...]:
        """The models, with the base before them if there is one."""
        return self.models if self.base is None else (self.base, *self.models)

    def member(self, label: str) -> Model:
        """The model of a label, or the base."""
        return next(model for model in self.members if model.label == label)

    def expert(self, task: str) -> str:
        """What the expert of a task is opened by."""
        return self.member(self.owners[task]).reference

    def suite(self, split: str) -> Path:
        """The suite of a split; raises UsageError if the family has none."""
        if split not in self.suites:
            raise UsageError(
                f"The family {shown(self.name)} has no split {split!r}; use {' or '.join(self.suites)}."
            )
        return self.suites[split]

    def measured_as(self, split: str) -> str:
        """The split that is measured for the sake of a split: the whole suite where it is halved."""
        return WHOLE if self.is_halved else split

    def part(self, evaluation: Evaluation, split: str) -> Evaluation:
        """What an evaluation that was measured says of a split."""
        return half_of(evaluation, first=split == VALIDATION) if self.is_halved else evaluation

    def statistics_of(self, label: str) -> list[Path]:
        """The statistics files of a model, by name."""
        if self.statistics is None:
            return []
        return sorted(self.statistics.glob(f"{label}.*.safetensors"))

    def measured(self, statistics: Path) -> Family:
        """The family with a folder of statistics; raises UsageError for one that lacks a model's."""
        found = replace(self, statistics=statistics.absolute())
        state = hashlib.sha256()
        for model in self.members:
            files = found.statistics_of(model.label)
            for path in files:
                state.update(f"{path.name} {file_digest(path)}\n".encode())
            if not files and model is not self.base:
                raise UsageError(
                    f"The folder {shown(statistics)} has no statistics of the expert {model.label!r}; it needs files "
                    f"such as {model.label}.fisher.safetensors."
                )
        return replace(found, statistics_digest=state.hexdigest())

    def first(self, number: int) -> Family:
        """The family with its first models only, and the tasks that these are experts of.

        Raises UsageError where it has fewer, and where it is not known which model is the expert of which task.
        """
        if number == len(self.models):
            return self
        if not 1 <= number < len(self.models):
            there = counted(len(self.models), "expert")
            raise UsageError(
                f"The family {shown(self.name)} has {there}, so {number} cannot be merged."
            )
        if self.unassigned:
            raise UsageError(
                f"Which model is the expert of {shown(self.unassigned[0])} is not known before it is measured, so the "
                f"first {number} cannot be taken; name models after tasks, or give a family file with `experts`."
            )
        models = self.models[:number]
        labels = {model.label for model in models}
        owners = {task: label for task, label in self.owners.items() if label in labels}
        return replace(self, models=models, owners=owners)

    def assigned(self, found: Mapping[str, str]) -> Family:
        """The family with experts of the tasks that had none."""
        return replace(self, owners={**self.owners, **found}, unassigned=())
