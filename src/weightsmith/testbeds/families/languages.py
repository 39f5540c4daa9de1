"""A language family: one small byte-level Llama, an expert a domain, and an expert of exact skills.

data      every task's texts in three splits, and texts that only the base is trained on
base      a Llama trained on a mixture of all domains but the unseen ones
experts   the base trained further on one domain, or on the skills together
merges    the plain average and task arithmetic, measured as a yardstick
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from weightsmith.testbeds.data.language_tasks import (
    Figures,
    Group,
    LanguageTask,
    gain,
    measure,
    read_rows,
    text_of,
    write_rows,
)
from weightsmith.testbeds.data.passages import Domain
from weightsmith.testbeds.data.skills import PromptSkill
from weightsmith.testbeds.data.sources import Archive
from weightsmith.testbeds.data.suites import write_suite
from weightsmith.testbeds.data.tasks import SPLITS, Split
from weightsmith.testbeds.family_registry import Blueprint, BuildStep
from weightsmith.testbeds.models import byte_llama
from weightsmith.testbeds.models.training import Schedule, Within, one_thread, train
from weightsmith.testbeds.workshop import Workshop

SKILLS = "skills"
EVALUATED: tuple[Split, ...] = ("validation", "test")
State = dict[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class DomainShare:
    """A domain of a family: `weight` is its share of the base's training, relative to the others."""

    domain: Domain
    weight: float
    group: Group = "own"


@dataclass(frozen=True, slots=True)
class Languages:
    """Everything that decides such a family.

    `skills` come with their shares of the base's training. `counts` are passages per task and split, at most.
    `rehearsal` is the share of an expert's rows that come from the base's mixture: an
    expert without any forgets the other domains faster than it learns its own. `costs` are CPU-seconds of the data,
    the base, one expert and one full measurement.
    """

    name: str
    parts: tuple[DomainShare, ...]
    skills: tuple[tuple[PromptSkill, float], ...]
    sources: tuple[Archive, ...]
    size: byte_llama.LlamaSize
    rehearsal: float
    base: Schedule
    expert: Schedule
    skill_expert: Schedule
    counts: Mapping[Split, int]
    factors: tuple[float, ...]
    costs: tuple[float, float, float, float]

    @property
    def tasks(self) -> tuple[LanguageTask, ...]:
        """All tasks: domains, then skills."""
        texts = [LanguageTask(p.domain.name, "language_modeling", p.group) for p in self.parts]
        return (*texts, *(LanguageTask(skill.name, skill.kind) for skill, _ in self.skills))

    @property
    def own(self) -> tuple[LanguageTask, ...]:
        """The tasks that an expert is trained on."""
        return tuple(task for task in self.tasks if task.group == "own")

    @property
    def experts(self) -> dict[str, tuple[LanguageTask, ...]]:
        """The tasks of each expert."""
        found: dict[str, tuple[LanguageTask, ...]] = {
            task.name: (task,) for task in self.own if task.kind == "language_modeling"
        }
        if self.skills:
            found[SKILLS] = tuple(task for task in self.own if task.kind != "language_modeling")
        return found

    def settings(self) -> dict[str, Any]:
        """The numbers that decide the data and the base."""
        return {
            "revision": 1,
            "weights": self.weights(),
            "size": asdict(self.size),
            "base": self.base.settings(),
            "counts": dict(self.counts),
        }

    def blueprint(self) -> Blueprint:
        """The steps of the build."""
        data, base, expert, measuring = self.costs
        steps = [BuildStep("data", data, self.make_data), BuildStep("base", base, self.make_base)]
        steps += [
            BuildStep(f"experts/{name}", expert, partial(self._make_expert, name=name))
            for name in self.experts
        ]
        steps.append(
            BuildStep("merges", (len(self.factors) / 3 + 2) * measuring, self._make_merges)
        )
        settings = {
            **self.settings(),
            "expert": self.expert.settings(),
            "skill_expert": self.skill_expert.settings(),
            "rehearsal": self.rehearsal,
            "factors": list(self.factors),
        }
        names = tuple(task.name for task in self.own)
        return Blueprint(names, self.sources, settings, tuple(steps))

    def make_data(self, workshop: Workshop) -> Mapping[str, Any]:
        """Write the texts of every task and the suites."""
        rows: dict[str, Mapping[Split, Sequence[dict[str, Any]]]] = {}
        for i, part in enumerate(self.parts):
            passages = part.domain.passages(self.counts)
            rows[part.domain.name] = {
                split: [{"text": text} for text in passages[split]] for split in SPLITS
            }
            workshop.within(i + 1, len(self.parts))
        rows.update({skill.name: skill.rows(self.counts, seed=0) for skill, _ in self.skills})
        for task in self.tasks:
            for split in SPLITS:
                if split != "train" or task.group != "unseen":
                    place = workshop.place(f"data/{task.name}.{split}.jsonl")
                    write_rows(place, rows[task.name][split])
        write_suites(workshop, self.name, self.tasks)
        return {}

    def weights(self) -> dict[str, float]:
        """The share of each task in the base's training, relative to the others."""
        found = {part.domain.name: part.weight for part in self.parts if part.weight}
        found.update({skill.name: weight for skill, weight in self.skills if weight})
        return found

    def expert_weights(self, name: str) -> dict[str, float]:
        """The share of each task in an expert's training."""
        own, mixed = self.experts[name], self.weights()
        total = sum(mixed.values())
        found = {task: self.rehearsal * weight / total for task, weight in mixed.items()}
        for task in own:
            found[task.name] = found.get(task.name, 0.0) + (1 - self.rehearsal) / len(own)
        return {task: weight for task, weight in found.items() if weight}

    def make_base(self, workshop: Workshop, folder: str = "base") -> Mapping[str, Any]:
        """Train the base on the mixture."""
        model = byte_llama.new_model(self.size, self.base.seed)
        with one_thread():
            rows = mixture(workshop.root, self.weights(), self.base)
            tune(model, rows, self.base, workshop.within)
            byte_llama.write_model(model, workshop.place(f"{folder}/config.json").parent)
            return {folder: measure(model, workshop.root, self.tasks, EVALUATED)}

    def _make_expert(self, workshop: Workshop, name: str) -> Mapping[str, Any]:
        model = byte_llama.read_model(workshop.root / "base")
        own = self.experts[name]
        schedule = self.skill_expert if name == SKILLS else self.expert
        with one_thread():
            rows = mixture(workshop.root, self.expert_weights(name), schedule)
            tune(model, rows, schedule, workshop.within)
            byte_llama.write_model(model, workshop.place(f"experts/{name}/config.json").parent)
            figures = measure(model, workshop.root, self.tasks, ("validation",))
            for task, scores in measure(model, workshop.root, own, ("test",)).items():
                figures[task].update(scores)
        return {f"experts/{name}": figures}

    def _make_merges(self, workshop: Workshop) -> Mapping[str, Any]:
        return merge_figures(workshop, self.experts, self.tasks, self.factors)


def write_suites(workshop: Workshop, name: str, tasks: Sequence[LanguageTask]) -> None:
    """Write the suites of both splits."""
    for split in EVALUATED:
        suite = [task.suite_row(split) for task in tasks]
        write_suite(workshop.place(f"suite.{split}.yaml"), f"{name}-{split}", suite)


def mixture(root: Path, weights: Mapping[str, float], schedule: Schedule) -> torch.Tensor:
    """As many rows of ROW + 1 tokens as the schedule reads, split over tasks by weight, [rows, ROW + 1]."""
    rows, total = schedule.steps * schedule.batch, sum(weights.values())
    parts = []
    for name, weight in weights.items():
        texts = [text_of(row) for row in read_rows(root / f"data/{name}.train.jsonl")]
        generator = torch.Generator().manual_seed(schedule.seed)
        order = torch.randperm(len(texts), generator=generator)
        shuffled = [texts[i] for i in order]
        parts.append(byte_llama.pack(shuffled, max(1, round(rows * weight / total))))
    return torch.cat(parts)


def tune(model: Any, rows: torch.Tensor, schedule: Schedule, within: Within) -> None:
    """Train the parameters that ask for a gradient to predict each next token of the rows, in place."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    logits: Callable[[torch.Tensor], torch.Tensor] = partial(byte_llama.logits, model)
    model.train()
    train(parameters, logits, rows[:, :-1], rows[:, 1:], schedule, within)
    model.eval()


def merge_figures(
    workshop: Workshop,
    experts: Mapping[str, tuple[LanguageTask, ...]],
    tasks: Sequence[LanguageTask],
    factors: Sequence[float],
) -> dict[str, Any]:
    """Scores of the plain average, and of task arithmetic at the factor that is best on validation."""
    root = workshop.root
    base = byte_llama.read_model(root / "base")
    states = [byte_llama.read_model(root / f"experts/{name}").state_dict() for name in experts]
    own = [task for group in experts.values() for task in group]
    figures: dict[str, Any] = {}
    with one_thread():
        average = task_arithmetic(base, states, 1 / len(states))
        figures["average"] = measure(average, root, tasks, EVALUATED)
        starting = measure(base, root, own, ("validation",))
        reached: Figures = {}
        for name, group in experts.items():
            expert = byte_llama.read_model(root / f"experts/{name}")
            reached.update(measure(expert, root, group, ("validation",)))
        gains: dict[float, float] = {}
        for i, factor in enumerate(factors):
            merged = measure(task_arithmetic(base, states, factor), root, own, ("validation",))
            gains[factor] = gain(merged, starting, reached, own, "validation")
            workshop.within(i + 1, len(factors))
        best = max(gains, key=gains.__getitem__)
        chosen = task_arithmetic(base, states, best)
        scores = measure(chosen, root, tasks, EVALUATED)
        figures[f"task arithmetic, {best:g}"] = scores
    figures["gain by factor"] = {f"{factor:g}": round(value, 4) for factor, value in gains.items()}
    return figures


def task_arithmetic(base: Any, experts: Sequence[State], factor: float) -> Any:
    """base + factor * sum of (expert - base), as a model; factor 1/T is the plain average."""
    merged = copy.deepcopy(base)
    state = {
        name: start + factor * sum(expert[name] - start for expert in experts)
        for name, start in base.state_dict().items()
    }
    merged.load_state_dict(state)
    return merged
