"""The family `pair`: two ResNets that began with different weights and saw the same images in another order.

They compute nearly the same function with their channels in unrelated orders, so their plain average is poor: the case
for permutation alignment. Batch normalisation lets the statistics of a merged network be measured anew.
One network tells 24 classes apart: ten shapes, eight directions of waves, and one to six dots.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from weightsmith.testbeds.data import tasks
from weightsmith.testbeds.data.suites import write_suite
from weightsmith.testbeds.data.tasks import SPLITS, Split, read_items, write_items
from weightsmith.testbeds.family_registry import Blueprint, BuildStep
from weightsmith.testbeds.models.training import Schedule, one_thread, train
from weightsmith.testbeds.models.vit import as_tensor, quiet_library, write_model
from weightsmith.testbeds.workshop import Workshop

TASK = "figures"
_MEMBERS = ("first", "second")
_WIDTHS = (32, 64, 128)
_COUNTS: Mapping[Split, int] = {"train": 6000, "validation": 600, "test": 1200}
_SCHEDULES = {
    name: Schedule(900, 4e-3, warm_up=50, decay=0.05, seed=11 + i)
    for i, name in enumerate(_MEMBERS)
}


def pair() -> Blueprint:
    """The steps of the family."""
    settings = {
        "revision": 1,
        "widths": list(_WIDTHS),
        "counts": dict(_COUNTS),
        "schedules": {name: schedule.settings() for name, schedule in _SCHEDULES.items()},
    }
    steps = [BuildStep("data", 4, _make_data)]
    steps += [
        BuildStep(f"experts/{name}", 25, partial(_make_member, name=name)) for name in _MEMBERS
    ]
    steps.append(BuildStep("merges", 1, _make_merges))
    return Blueprint((TASK,), (), settings, tuple(steps))


def _make_data(workshop: Workshop) -> Mapping[str, Any]:
    parts = (tasks.shapes(), tasks.gratings(), tasks.dots())
    classes = sum(len(part.classes) for part in parts)
    for i, split in enumerate(SPLITS):
        pixels, labels, first = [], [], 0
        for part in parts:
            share = _COUNTS[split] * len(part.classes) // classes
            drawn, found = part.images(split, share, seed=1)
            pixels.append(drawn)
            labels.append(found + first)
            first += len(part.classes)
        place = workshop.place(f"data/{TASK}.{split}.npz")
        write_items(place, np.concatenate(pixels), np.concatenate(labels))
        workshop.within(i + 1, len(SPLITS))
    for split in ("validation", "test"):
        row = {
            "name": TASK,
            "kind": "classification",
            "data": f"data/{TASK}.{split}.npz",
            "metric": "accuracy",
        }
        write_suite(workshop.place(f"suite.{split}.yaml"), f"pair-{split}", [row])
    return {}


def _new_model(seed: int) -> Any:
    from transformers import ResNetConfig, ResNetForImageClassification

    parts = (tasks.shapes(), tasks.gratings(), tasks.dots())
    names = [f"{part.name}: {name}" for part in parts for name in part.classes]
    torch.manual_seed(seed)
    config = ResNetConfig(
        num_channels=1,
        embedding_size=_WIDTHS[0],
        hidden_sizes=list(_WIDTHS),
        depths=[1, 1, 1],
        layer_type="basic",
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    return ResNetForImageClassification(config)


def _make_member(workshop: Workshop, name: str) -> Mapping[str, Any]:
    schedule = _SCHEDULES[name]
    model = _new_model(schedule.seed)
    images, labels = _items(workshop.root, "train")
    with one_thread():
        train(list(model.parameters()), _logits(model), images, labels, schedule, workshop.within)
        model.eval()
        folder = workshop.place(f"experts/{name}/config.json").parent
        write_model(model, folder, _read_model)
        return {f"experts/{name}": _measure(model, workshop.root)}


def _make_merges(workshop: Workshop) -> Mapping[str, Any]:
    """The plain average, buffers of batch normalisation included."""
    first, second = (_read_model(workshop.root / f"experts/{name}") for name in _MEMBERS)
    other = second.state_dict()
    merged = copy.deepcopy(first)
    state = {
        name: (tensor + other[name]) / 2 if tensor.is_floating_point() else tensor
        for name, tensor in first.state_dict().items()
    }
    merged.load_state_dict(state)
    with one_thread():
        return {"average": _measure(merged, workshop.root)}


def _read_model(folder: Path) -> Any:
    from transformers import ResNetForImageClassification

    with quiet_library():
        return ResNetForImageClassification.from_pretrained(folder, dtype=torch.float32)


def _logits(model: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    def logits(images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = model(pixel_values=images).logits
        return found

    return logits


def _measure(model: Any, root: Path) -> dict[str, dict[str, float]]:
    scores: dict[str, float] = {}
    for split in ("validation", "test"):
        images, labels = _items(root, split)
        with torch.no_grad():
            parts = [images[i : i + 200] for i in range(0, len(images), 200)]
            guesses = torch.cat([_logits(model)(part).argmax(1) for part in parts])
        scores[split] = round((guesses == labels).double().mean().item(), 4)
    return {TASK: scores}


def _items(root: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    pixels, labels = read_items(root / f"data/{TASK}.{split}.npz")
    return as_tensor(pixels), torch.from_numpy(labels)
