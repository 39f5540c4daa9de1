"""Statistics of a family's experts on their own training data, for methods of the league that need them.

    python benchmarks/family_statistics.py --family vision --out statistics
    weightsmith league --family vision --methods fisher,regmean,ota,rcp,metrics_weighted --statistics statistics

For each expert: the diagonal of the empirical Fisher matrix (mean of squared gradients of single items), Gram matrices
of the inputs of its linear layers, gradients of a few single items, the second moments that Adam would hold after some
batches at these weights (beta 0.999, bias corrected), and its validation score. Items are the first of the training
split: images, texts, or queries with their documents. A query's loss is among the documents of its batch, and its
gradient runs through all of them, so fewer are taken. Tensors that have no part in the loss, such as the pooler of a
sentence encoder, get no statistics.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from weightsmith.checkpoints import open_checkpoint
from weightsmith.checkpoints.formats.statistics_writer import write_statistics
from weightsmith.comparison.family import Family
from weightsmith.comparison.family_opening import open_family
from weightsmith.evaluation.frozen_head import read_head
from weightsmith.evaluation.items import read_labelled
from weightsmith.evaluation.metrics import find_metric
from weightsmith.evaluation.retrieval import encoder_of
from weightsmith.evaluation.scoring import evaluate
from weightsmith.evaluation.suite import Suite, Task, load_suite
from weightsmith.evaluation.tokens import tokens_of
from weightsmith.live import LiveModel, load_model
from weightsmith.testbeds.families.embedding import SCALE
from weightsmith.testbeds.models.vit import features

SINGLE, BATCH, BETA = 8, 32, 0.999
Losses = Callable[[slice], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Amounts:
    """Items of the Fisher diagonal, items of the Gram matrices, and Adam's batches with the items of each."""

    single: int = 256
    inputs: int = 256
    batches: int = 40
    batch: int = BATCH


@dataclass(frozen=True, slots=True)
class Training:
    """The training items of an expert: the mean loss of a range of them, the network run on them, and their number.

    `forward` never sees padding, which would count among a layer's inputs.
    """

    losses: Losses
    forward: Callable[[slice], object]
    count: int


# A batch of pairs is what the experts of `embedding` were trained with.
PAIRS = Amounts(single=64, batches=8, batch=24)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--family", required=True)
    options.add_argument("--out", required=True, type=Path)
    given = options.parse_args()
    family = open_family(given.family)
    given.out.mkdir(parents=True, exist_ok=True)
    suite = load_suite(family.suite("validation"))
    for task in family.experts:
        collect(family, suite, task, given.out)
        print(task, flush=True)


def collect(family: Family, suite: Suite, name: str, out: Path) -> None:
    """Write the files of one expert."""
    checkpoint = open_checkpoint(family.expert(name))
    model = load_model(family.expert(name))
    model.module.requires_grad_(True)
    stored = stored_names(model)
    task = next(task for task in suite.tasks if task.name == name)
    training = training_of(family, model, task)
    amounts = PAIRS if task.kind == "retrieval" else Amounts()

    def write(kind: str, tensors: Mapping[str, Any], samples: int, **more: Any) -> None:
        write_statistics(
            out / f"{name}.{kind}.safetensors",
            tensors,
            kind=kind,
            of=checkpoint,
            data=f"{family.name}/{name}.train, first items",
            samples=samples,
            **more,
        )

    singles = min(amounts.single, training.count)
    fisher, few = single_items(model, stored, training.losses, singles)
    write("fisher", as_float32(fisher), singles)
    write("gradients", few, min(SINGLE, singles))
    moments = adam_moments(model, stored, training, amounts)
    write("adam", as_float32(moments), amounts.batches * amounts.batch)
    inputs = min(amounts.inputs, training.count)
    grams = gram_matrices(model, stored, training.forward, inputs, frozenset(fisher))
    write("gram", as_float32(grams), inputs)
    score = evaluate(family.expert(name), family.suite("validation"), tasks=(name,)).scores[0]
    value = (
        score.value
        if find_metric(str(task.metric), task.kind).higher_is_better
        else 1 / score.value
    )
    write("metrics", {}, score.items, metrics={"score": value})


def training_of(family: Family, model: LiveModel, task: Task) -> Training:
    """The items of the training split, with the loss that the family's experts were trained with."""
    data = family.folder / "data"
    if task.head is not None:
        return of_images(replace(task, data=data / f"{task.name}.train.npz"), model)
    with (data / f"{task.name}.train.jsonl").open(encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    return (
        of_pairs(task, lines, model) if task.kind == "retrieval" else of_texts(task, lines, model)
    )


def of_images(task: Task, model: LiveModel) -> Training:
    """Cross-entropy of images through the task's frozen head."""
    head = read_head(task.head)
    items = read_labelled(task)
    labels = torch.from_numpy(items.labels.astype(np.int64))

    def losses(places: slice) -> torch.Tensor:
        images = torch.from_numpy(items.inputs[places])
        return functional.cross_entropy(head.logits(features(model.module, images)), labels[places])

    return Training(losses, losses, len(labels))


def of_texts(task: Task, lines: Sequence[Any], model: LiveModel) -> Training:
    """Cross-entropy of the next token, the mean over each text's tokens."""
    tokens = tokens_of(model)
    texts = [line["text"] if "text" in line else line["prompt"] + line["answer"] for line in lines]

    def losses(places: slice) -> torch.Tensor:
        rows = [tokens.encode(text)[: task.context or 128] for text in texts[places]]
        found = []
        for row in rows:
            ids = torch.tensor([row])
            logits = model.module(input_ids=ids[:, :-1], use_cache=False).logits[0]
            found.append(functional.cross_entropy(logits, ids[0, 1:]))
        return torch.stack(found).mean()

    return Training(losses, losses, len(texts))


def of_pairs(task: Task, lines: Sequence[Any], model: LiveModel) -> Training:
    """Cross-entropy of queries' documents among those of the batch (InfoNCE), as the family's training has it.

    A single pair stands among the documents of the batch of PAIRS.batch that it lies in.
    """
    encode = encoder_of(model, task.name)
    queries, documents = ([str(line[key]) for line in lines] for key in ("query", "document"))

    def losses(places: slice) -> torch.Tensor:
        first, last = places.start, places.stop
        if last - first == 1:
            first = first // PAIRS.batch * PAIRS.batch
            last = first + PAIRS.batch
        cosines = encode(queries[places]) @ encode(documents[first:last]).T
        own = torch.arange(places.start - first, places.stop - first)
        return functional.cross_entropy(SCALE * cosines, own)

    def forward(places: slice) -> None:
        for text in (*queries[places], *documents[places]):
            encode([text])

    return Training(losses, forward, len(lines))


def stored_names(model: LiveModel) -> dict[str, str]:
    """Parameter in the live model -> tensor in the file."""
    found = {}
    for name, _ in model.module.named_parameters():
        files = model.names.files_of(name)
        if len(files) != 1:
            raise SystemExit(f"{name} of {model.name} is none, or several, of the stored tensors")
        found[name] = files[0]
    return found


def gradients(
    model: LiveModel, stored: Mapping[str, str], loss: torch.Tensor
) -> dict[str, np.ndarray]:
    """The loss's gradient by stored tensor."""
    names = [n for n, _ in model.module.named_parameters()]
    parameters = [p for _, p in model.module.named_parameters()]
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {stored[n]: g.numpy() for n, g in zip(names, grads, strict=True) if g is not None}


def single_items(
    model: LiveModel, stored: Mapping[str, str], losses: Losses, count: int
) -> tuple[dict[str, np.ndarray], dict[str, list[np.ndarray]]]:
    """The mean of squared gradients of single items, in float64, and the gradients of the first SINGLE."""
    sums: dict[str, np.ndarray] = {}
    few: dict[str, list[np.ndarray]] = {}
    for i in range(count):
        for name, gradient in gradients(model, stored, losses(slice(i, i + 1))).items():
            sums[name] = sums.get(name, 0.0) + np.square(gradient, dtype=np.float64)
            if i < SINGLE:
                few.setdefault(name, []).append(gradient)
    return {name: total / count for name, total in sums.items()}, few


def adam_moments(
    model: LiveModel, stored: Mapping[str, str], training: Training, amounts: Amounts
) -> dict[str, np.ndarray]:
    """exp_avg_sq after batches at a standstill, bias corrected."""
    moments: dict[str, np.ndarray] = {}
    for step in range(amounts.batches):
        first = step * amounts.batch % max(training.count - amounts.batch, 1)
        found = gradients(model, stored, training.losses(slice(first, first + amounts.batch)))
        for name, gradient in found.items():
            square = (1 - BETA) * np.square(gradient, dtype=np.float64)
            moments[name] = BETA * moments.get(name, 0.0) + square
    return {name: moment / (1 - BETA**amounts.batches) for name, moment in moments.items()}


def gram_matrices(
    model: LiveModel,
    stored: Mapping[str, str],
    forward: Callable[[slice], object],
    count: int,
    taking_part: frozenset[str],
) -> dict[str, np.ndarray]:
    """X^T X / rows of X for the inputs X of every linear layer that takes part, by the stored name of its weight."""
    sums: dict[str, np.ndarray] = {}
    rows: dict[str, int] = {}

    def hook(name: str) -> Callable[..., None]:
        def add(_: Any, inputs: tuple[torch.Tensor, ...], __: Any) -> None:
            x = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).double().numpy()
            sums[name] = sums.get(name, 0.0) + x.T @ x
            rows[name] = rows.get(name, 0) + len(x)

        return add

    # A head that is tied to the embedding has no weight of its own, and a pooler runs though nobody reads it.
    linears = {
        stored[f"{name}.weight"]: module
        for name, module in model.module.named_modules()
        if isinstance(module, torch.nn.Linear) and stored.get(f"{name}.weight") in taking_part
    }
    hooks = [module.register_forward_hook(hook(name)) for name, module in linears.items()]
    with torch.no_grad():
        for first in range(0, count, BATCH):
            forward(slice(first, min(first + BATCH, count)))
    for handle in hooks:
        handle.remove()
    return {name: total / rows[name] for name, total in sums.items()}


def as_float32(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}


if __name__ == "__main__":
    main()
