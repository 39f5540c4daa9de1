"""A vision family like the CLIP eight-task benchmark: one pretrained network, frozen heads, an expert a task.

data      every task's images, in three splits
base      a ViT trained to tell the pretraining classes apart; its classifier is thrown away
heads     each task's head from the base's features of a few training images; fixed from here on
experts   the base tuned on one task through that task's head
merges    the plain average and task arithmetic, measured as a yardstick
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from weightsmith.testbeds.data.images import Pixels, grain, standardise
from weightsmith.testbeds.data.sources import Archive
from weightsmith.testbeds.data.suites import classification, write_suite
from weightsmith.testbeds.data.tasks import (
    SPLITS,
    Labels,
    Split,
    generator_of,
    read_items,
    write_items,
)
from weightsmith.testbeds.family_registry import Blueprint, BuildStep
from weightsmith.testbeds.models import heads, vit
from weightsmith.testbeds.models.training import Schedule, one_thread, train
from weightsmith.testbeds.workshop import Workshop

Figures = dict[str, dict[str, float]]


class FamilyTask(Protocol):
    """A task of a family."""

    @property
    def name(self) -> str:
        """The word that its files begin with."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of its classes, by label."""

    def images(self, split: Split, count: int, seed: int) -> tuple[Pixels, Labels]:
        """Standardised images [N, 24, 24] and labels."""


@dataclass(frozen=True, slots=True)
class Contrast:
    """Everything that decides such a family.

    `pretraining()` gives images [N, 24, 24], labels and how many classes there are. Only the images of tasks get
    a `grain` (see `images.grain`; in deviations of an image). A head is made of `per_class` training images of each
    class. `counts` are images per task and split. `costs` are CPU-seconds of the data, the base and one expert, for the
    remaining time of a build.
    """

    name: str
    tasks: Callable[[], tuple[FamilyTask, ...]]
    task_names: tuple[str, ...]
    pretraining: Callable[[], tuple[Pixels, Labels, int]]
    sources: tuple[Archive, ...]
    size: vit.VitSize
    base: Schedule
    expert: Schedule
    counts: Mapping[Split, int]
    grain: float
    per_class: int
    scale: float
    seed: int
    factors: tuple[float, ...]
    costs: tuple[float, float, float]

    def blueprint(self) -> Blueprint:
        """The steps of the build."""
        data, base, expert = self.costs
        settings = {
            "revision": 1,
            "size": asdict(self.size),
            "base": self.base.settings(),
            "expert": self.expert.settings(),
            "counts": dict(self.counts),
            "grain": self.grain,
            "per_class": self.per_class,
            "scale": self.scale,
            "seed": self.seed,
            "factors": list(self.factors),
        }
        steps = [
            BuildStep("data", data, self._make_data),
            BuildStep("base", base, self._make_base),
            BuildStep("heads", expert / 2, self._make_heads),
        ]
        steps += [
            BuildStep(f"experts/{name}", expert, partial(self._make_expert, name=name))
            for name in self.task_names
        ]
        steps.append(BuildStep("merges", 2 * expert, self._make_merges))
        return Blueprint(self.task_names, self.sources, settings, tuple(steps))

    def _make_data(self, workshop: Workshop) -> Mapping[str, Any]:
        tasks = self.tasks()
        for i, task in enumerate(tasks):
            for split in SPLITS:
                pixels, labels = task.images(split, self.counts[split], self.seed)
                generator = generator_of("grain", task.name, split, self.seed)
                grained = standardise(np.stack([grain(generator, p, self.grain) for p in pixels]))
                write_items(workshop.place(f"data/{task.name}.{split}.npz"), grained, labels)
            workshop.within(i + 1, len(tasks))
        for split in ("validation", "test"):
            rows = [classification(task.name, split) for task in tasks]
            write_suite(workshop.place(f"suite.{split}.yaml"), f"{self.name}-{split}", rows)
        return {}

    def _make_base(self, workshop: Workshop) -> Mapping[str, Any]:
        pixels, labels, classes = self.pretraining()
        model = vit.new_model(self.size, self.seed)
        classifier = torch.nn.Linear(self.size.width, classes)
        parameters = [*model.parameters(), *classifier.parameters()]
        with one_thread():
            train(
                parameters,
                lambda images: classifier(vit.features(model, images)),
                vit.as_tensor(pixels),
                torch.from_numpy(labels),
                self.base,
                workshop.within,
            )
        vit.write_model(model, workshop.place("base/config.json").parent)
        return {}

    def _make_heads(self, workshop: Workshop) -> Mapping[str, Any]:
        model = vit.read_model(workshop.root / "base")
        tasks = self.tasks()
        with one_thread():
            for task in tasks:
                images, labels = _items(workshop.root, task.name, "train")
                chosen = torch.cat(
                    [(labels == k).nonzero()[: self.per_class, 0] for k in range(len(task.classes))]
                )
                found = vit.all_features(model, images[chosen])
                head = heads.make_head(found, labels[chosen], task.classes, self.scale)
                heads.write_head(head, workshop.place(f"heads/{task.name}.safetensors"))
            return {"base": self._measure(model, workshop.root, workshop.new)}

    def _make_expert(self, workshop: Workshop, name: str) -> Mapping[str, Any]:
        model = vit.read_model(workshop.root / "base")
        head = heads.read_head(workshop.root / f"heads/{name}.safetensors")
        images, labels = _items(workshop.root, name, "train")
        with one_thread():
            train(
                list(model.parameters()),
                lambda batch: head.logits(vit.features(model, batch)),
                images,
                labels,
                self.expert,
                workshop.within,
            )
            folder = workshop.place(f"experts/{name}/config.json").parent
            vit.write_model(model, folder)
            return {f"experts/{name}": self._measure(model, workshop.root)}

    def _make_merges(self, workshop: Workshop) -> Mapping[str, Any]:
        base = vit.read_model(workshop.root / "base")
        experts = [
            vit.read_model(workshop.root / f"experts/{name}").state_dict()
            for name in self.task_names
        ]
        figures: dict[str, Any] = {}
        with one_thread():
            average = _task_arithmetic(base, experts, 1 / len(experts))
            figures["average"] = self._measure(average, workshop.root)
            best, best_factor = -1.0, 0.0
            for i, factor in enumerate(self.factors):
                merged = _task_arithmetic(base, experts, factor)
                scores = self._measure(merged, workshop.root, splits=("validation",))
                score = sum(row["validation"] for row in scores.values())
                if score > best:
                    best, best_factor = score, factor
                workshop.within(i + 1, len(self.factors))
            merged = _task_arithmetic(base, experts, best_factor)
            figures[f"task arithmetic, {best_factor:g}"] = self._measure(merged, workshop.root)
        return figures

    def _measure(
        self,
        model: Any,
        root: Path,
        heads_root: Path | None = None,
        splits: tuple[Split, ...] = ("validation", "test"),
    ) -> Figures:
        """Accuracy on every task and split."""
        figures: Figures = {}
        for name in self.task_names:
            head = heads.read_head((heads_root or root) / f"heads/{name}.safetensors")
            figures[name] = {}
            for split in splits:
                images, labels = _items(root, name, split)
                right = head.right(vit.all_features(model, images), labels)
                figures[name][split] = round(right, 4)
        return figures


def _items(root: Path, task: str, split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    pixels, labels = read_items(root / f"data/{task}.{split}.npz")
    return vit.as_tensor(pixels), torch.from_numpy(labels)


def _task_arithmetic(base: Any, experts: list[dict[str, torch.Tensor]], factor: float) -> Any:
    """base + factor * sum of (expert - base), as a model; factor 1/T is the plain average."""
    merged = copy.deepcopy(base)
    state = {
        name: start + factor * sum(expert[name] - start for expert in experts)
        for name, start in base.state_dict().items()
    }
    merged.load_state_dict(state)
    return merged
