"""The family `smollm`: SmolLM2-135M-Instruct, and low-rank adapters for three kinds of text, each also folded in."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from weightsmith.testbeds.data.language_tasks import Figures, read_rows, write_rows
from weightsmith.testbeds.data.passages import QURAN, SPEECHES, scripture, speeches
from weightsmith.testbeds.data.suites import write_suite
from weightsmith.testbeds.data.tasks import SPLITS, Split
from weightsmith.testbeds.families.languages import task_arithmetic
from weightsmith.testbeds.family_registry import Blueprint, BuildStep
from weightsmith.testbeds.models import chat_model
from weightsmith.testbeds.models.byte_llama import logits, read_model
from weightsmith.testbeds.models.low_rank_layers import (
    Shape,
    add_adapters,
    fold_adapters,
    write_adapter,
)
from weightsmith.testbeds.models.training import Schedule, one_thread, train
from weightsmith.testbeds.workshop import Workshop

_DOMAINS = (scripture("turkish", "tr"), scripture("french", "fr"), speeches("english"))
_NAMES = tuple(domain.name for domain in _DOMAINS)
_SHAPES: Mapping[str, Shape] = {
    "turkish": Shape(8, 16),
    "french": Shape(8, 16),
    "english": Shape(4, 8),
}
_SCHEDULE = Schedule(14, 2e-3, batch=2, warm_up=1, seed=41)
_ROW = 96
_BYTES = 300
_COUNTS: Mapping[Split, int] = {"train": 1000, "validation": 12, "test": 48}
_FACTOR = 0.6


def smollm() -> Blueprint:
    """The steps: adapters/TASK in PEFT's format, and experts/TASK, the base with that adapter folded in."""
    settings = {
        "revision": 1,
        "adapters": {name: [shape.rank, shape.alpha] for name, shape in _SHAPES.items()},
        "adapter": _SCHEDULE.settings(),
        "row": _ROW,
        "bytes": _BYTES,
        "counts": dict(_COUNTS),
        "factor": _FACTOR,
    }
    steps = [BuildStep("data", 20, _make_data), BuildStep("base", 80, _make_base)]
    steps += [
        BuildStep(f"adapters/{name}", 60, partial(_make_adapter, name=name)) for name in _NAMES
    ]
    steps.append(BuildStep("merges", 130, _make_merges))
    return Blueprint(_NAMES, (chat_model.SMOLLM, QURAN, SPEECHES), settings, tuple(steps))


def _make_data(workshop: Workshop) -> Mapping[str, Any]:
    for i, domain in enumerate(_DOMAINS):
        passages = domain.passages(_COUNTS, _BYTES)
        for split in SPLITS:
            rows = [{"text": text} for text in passages[split]]
            write_rows(workshop.place(f"data/{domain.name}.{split}.jsonl"), rows)
        workshop.within(i + 1, len(_DOMAINS))
    for split in ("validation", "test"):
        suite = [
            {
                "name": name,
                "kind": "language_modeling",
                "data": f"data/{name}.{split}.jsonl",
                "metric": "bits_per_byte",
                "context": 2 * _ROW,
                "group": "own",
            }
            for name in _NAMES
        ]
        write_suite(workshop.place(f"suite.{split}.yaml"), f"smollm-{split}", suite)
    return {}


def _make_base(workshop: Workshop) -> Mapping[str, Any]:
    folder = workshop.place("base/config.json").parent
    chat_model.unpack_base(workshop.archive(chat_model.SMOLLM), folder)
    with one_thread():
        return {"base": _measure(read_model(folder), folder, workshop.root, _NAMES)}


def _make_adapter(workshop: Workshop, name: str) -> Mapping[str, Any]:
    base = workshop.root / "base"
    model, tokenizer = read_model(base), chat_model.read_tokenizer(base)
    texts = [row["text"] for row in read_rows(workshop.root / f"data/{name}.train.jsonl")]
    adapted = add_adapters(model, _SHAPES[name], _SCHEDULE.seed)
    with one_thread():
        rows = chat_model.rows_of(tokenizer, texts, _SCHEDULE.steps * _SCHEDULE.batch, _ROW)
        parameters = [p for p in model.parameters() if p.requires_grad]
        guess = partial(logits, model)
        train(parameters, guess, rows[:, :-1], rows[:, 1:], _SCHEDULE, workshop.within)
        folder = workshop.place(f"adapters/{name}/adapter_config.json").parent
        write_adapter(adapted, _SHAPES[name], "../../base", folder)
        fold_adapters(model, adapted)
        expert = workshop.place(f"experts/{name}/config.json").parent
        for path in sorted(base.iterdir()):
            if path.name not in ("config.json", "model.safetensors"):
                shutil.copyfile(path, expert / path.name)
        chat_model.write_model(model, expert)
        return {f"experts/{name}": _measure(read_model(expert), base, workshop.root, (name,))}


def _make_merges(workshop: Workshop) -> Mapping[str, Any]:
    """The plain average, and task arithmetic at one factor: a sweep would cost more than the training."""
    base = workshop.root / "base"
    model = read_model(base)
    states = [read_model(workshop.root / f"experts/{name}").state_dict() for name in _NAMES]
    figures: dict[str, Any] = {}
    with one_thread():
        for title, factor in (
            ("average", 1 / len(states)),
            (f"task arithmetic, {_FACTOR:g}", _FACTOR),
        ):
            merged = task_arithmetic(model, states, factor)
            figures[title] = _measure(merged, base, workshop.root, _NAMES)
    return figures


def _measure(model: Any, base: Path, root: Path, names: Sequence[str]) -> Figures:
    """Bits per byte on the test split."""
    tokenizer = chat_model.read_tokenizer(base)
    figures: Figures = {}
    for name in names:
        texts = [row["text"] for row in read_rows(root / f"data/{name}.test.jsonl")]
        figures[name] = {"test": round(chat_model.bits_per_byte(model, tokenizer, texts), 4)}
    return figures
