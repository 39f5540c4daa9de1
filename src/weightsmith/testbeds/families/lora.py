"""The family `lora`: adapters of ranks 2 to 8 on the base of `language`, each also folded into a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from weightsmith.testbeds.data.language_tasks import measure
from weightsmith.testbeds.families.language_family import languages
from weightsmith.testbeds.families.languages import merge_figures, mixture, tune
from weightsmith.testbeds.families.shared_base import shared_steps, tasks_among
from weightsmith.testbeds.family_registry import Blueprint, BuildStep
from weightsmith.testbeds.models import byte_llama
from weightsmith.testbeds.models.low_rank_layers import (
    Shape,
    add_adapters,
    fold_adapters,
    write_adapter,
)
from weightsmith.testbeds.models.training import Schedule, one_thread
from weightsmith.testbeds.workshop import Workshop

_SHAPES: Mapping[str, Shape] = {
    "english": Shape(8, 16),
    "python": Shape(8, 16),
    "french": Shape(4, 8),
    "russian": Shape(4, 8),
    "turkish": Shape(2, 4),
}
_SCHEDULE = Schedule(150, 4e-3, batch=16, seed=5)
_FACTORS = (0.15, 0.2, 0.3, 0.4, 0.6)


def lora() -> Blueprint:
    """The steps: adapters/TASK in PEFT's format, and experts/TASK, the base with that adapter folded in."""
    family = languages()
    settings = {
        **family.settings(),
        "adapters": {name: [shape.rank, shape.alpha] for name, shape in _SHAPES.items()},
        "adapter": _SCHEDULE.settings(),
        "factors": list(_FACTORS),
    }
    steps = list(shared_steps("lora", family, _SHAPES))
    steps += [
        BuildStep(f"adapters/{name}", 35, partial(_make_adapter, name=name)) for name in _SHAPES
    ]
    steps.append(BuildStep("merges", 180, _make_merges))
    return Blueprint(tuple(_SHAPES), family.sources, settings, tuple(steps))


def _make_adapter(workshop: Workshop, name: str) -> Mapping[str, Any]:
    tasks = tasks_among(languages(), _SHAPES)
    own = [task for task in tasks if task.name == name]
    model = byte_llama.read_model(workshop.root / "base")
    adapted = add_adapters(model, _SHAPES[name], _SCHEDULE.seed)
    with one_thread():
        tune(model, mixture(workshop.root, {name: 1.0}, _SCHEDULE), _SCHEDULE, workshop.within)
        folder = workshop.place(f"adapters/{name}/adapter_config.json").parent
        write_adapter(adapted, _SHAPES[name], "../../base", folder)
        fold_adapters(model, adapted)
        byte_llama.write_model(model, workshop.place(f"experts/{name}/config.json").parent)
        figures = measure(model, workshop.root, tasks, ("validation",))
        figures[name].update(measure(model, workshop.root, own, ("test",))[name])
    return {f"experts/{name}": figures}


def _make_merges(workshop: Workshop) -> Mapping[str, Any]:
    tasks = tasks_among(languages(), _SHAPES)
    experts = {task.name: (task,) for task in tasks if task.name in _SHAPES}
    return merge_figures(workshop, experts, tasks, _FACTORS)
