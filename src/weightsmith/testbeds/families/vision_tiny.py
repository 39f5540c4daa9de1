"""The family `vision-tiny`: four image tasks that need no download, for tests and demonstrations."""

from __future__ import annotations

import numpy as np

from weightsmith.testbeds.data import images, tasks
from weightsmith.testbeds.data.images import Pixels, standardise
from weightsmith.testbeds.data.tasks import Labels, generator_of
from weightsmith.testbeds.families.contrast import Contrast, FamilyTask
from weightsmith.testbeds.family_registry import Blueprint
from weightsmith.testbeds.models import vit
from weightsmith.testbeds.models.training import Schedule

_PRETRAINING_IMAGES = 4000


def vision_tiny() -> Blueprint:
    """The steps of the family."""
    return Contrast(
        name="vision-tiny",
        tasks=_tasks,
        task_names=("shapes", "gratings", "dots", "digits"),
        pretraining=_pretraining,
        sources=(),
        size=vit.VitSize(width=64, layers=2, heads=4),
        base=Schedule(800, 4e-3, batch=48, warm_up=50, decay=0.05, second_beta=0.98, seed=1),
        expert=Schedule(150, 1e-3, seed=3),
        counts={"train": 1000, "validation": 200, "test": 1000},
        grain=0.2,
        per_class=8,
        scale=16.0,
        seed=0,
        factors=(0.1, 0.2, 0.3, 0.4, 0.6),
        costs=(3, 5, 1.2),
    ).blueprint()


def _tasks() -> tuple[FamilyTask, ...]:
    return (tasks.shapes(), tasks.gratings(), tasks.dots(), tasks.Handwriting())


def _pretraining() -> tuple[Pixels, Labels, int]:
    """Coarse classes: pairs of shapes, every other direction, pairs of counts."""
    generator = generator_of("tiny pretraining", 0)
    labels = np.arange(_PRETRAINING_IMAGES) % 12
    drawn = [_coarse(generator, int(label)) for label in labels]
    return standardise(np.stack(drawn)), labels, 12


def _coarse(generator: np.random.Generator, label: int) -> Pixels:
    if label < 5:
        return images.draw_shape(generator, 2 * label + int(generator.integers(2)))
    if label < 9:
        return images.draw_grating(generator, 2 * (label - 5))
    return images.draw_dots(generator, 2 * (label - 9) + int(generator.integers(2)))
