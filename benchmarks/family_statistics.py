"""Statistics of a family's experts on their own training data, for methods of the league that need them.

    python benchmarks/family_statistics.py --family vision --out statistics
    weightsmith league --family vision --methods fisher,regmean,ota,rcp,metrics_weighted --statistics statistics

For each expert: the diagonal of the empirical Fisher matrix (mean of squared gradients of single items), Gram matrices
of the inputs of its linear layers, gradients of a few single items, the second moments that Adam would hold after some
batches at these weights (beta 0.999, bias corrected), and its validation score. Items are the first of the training
split.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from weightsmith.checkpoints import open_checkpoint
from weightsmith.checkpoints.statistics_writer import write_statistics
from weightsmith.comparison.family import Family, open_family
from weightsmith.evaluation.evaluate import evaluate
from weightsmith.evaluation.frozen_head import read_head
from weightsmith.evaluation.items import read_labelled
from weightsmith.evaluation.live import LiveModel, as_torch, load_model
from weightsmith.evaluation.metrics import find_metric
from weightsmith.evaluation.suite import Suite, Task, load_suite
from weightsmith.evaluation.tokens import tokens_of
from weightsmith.testbeds.vit import features

ITEMS, SINGLE, BATCHES, BATCH, BETA = 256, 8, 40, 32, 0.999
Losses = Callable[[slice], torch.Tensor]


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
    stored = stored_names(model, checkpoint.tensors)
    task = next(task for task in suite.tasks if task.name == name)
    losses, count = losses_of(family, model, task)
    singles = [gradients(model, stored, losses(slice(i, i + 1))) for i in range(min(ITEMS, count))]
    about = {"of": checkpoint, "data": f"{family.name}/{name}.train, first items"}
    fisher = {
        n: sum(np.square(g[n], dtype=np.float64) for g in singles) / len(singles)
        for n in singles[0]
    }
    write_statistics(
        out / f"{name}.fisher.safetensors",
        as_float32(fisher),
        kind="fisher",
        samples=len(singles),
        **about,
    )
    few = {n: [g[n] for g in singles[:SINGLE]] for n in singles[0]}
    write_statistics(
        out / f"{name}.gradients.safetensors", few, kind="gradients", samples=SINGLE, **about
    )
    moments = adam_moments(model, stored, losses, count)
    write_statistics(
        out / f"{name}.adam.safetensors",
        as_float32(moments),
        kind="adam",
        samples=BATCHES * BATCH,
        **about,
    )
    grams = gram_matrices(model, stored, losses, min(ITEMS, count))
    write_statistics(
        out / f"{name}.gram.safetensors",
        as_float32(grams),
        kind="gram",
        samples=min(ITEMS, count),
        **about,
    )
    score = evaluate(family.expert(name), family.suite("validation"), tasks=(name,)).scores[0]
    value = (
        score.value
        if find_metric(str(task.metric), task.kind).higher_is_better
        else 1 / score.value
    )
    write_statistics(
        out / f"{name}.metrics.safetensors",
        {},
        kind="metrics",
        samples=score.items,
        metrics={"score": value},
        **about,
    )


def losses_of(family: Family, model: LiveModel, task: Task) -> tuple[Losses, int]:
    """The losses of training items by their places (the mean over each item's tokens), and how many items there are."""
    data = family.folder / "data"
    if task.head is not None:
        head = read_head(task.head)
        items = read_labelled(replace(task, data=data / f"{task.name}.train.npz"))
        labels = torch.from_numpy(items.labels.astype(np.int64))

        def of_images(places: slice) -> torch.Tensor:
            images = torch.from_numpy(items.inputs[places])
            return functional.cross_entropy(
                head.logits(features(model.module, images)), labels[places]
            )

        return of_images, len(labels)
    lines = [json.loads(line) for line in (data / f"{task.name}.train.jsonl").open()]
    tokens = tokens_of(model)
    texts = [line["text"] if "text" in line else line["prompt"] + line["answer"] for line in lines]

    def of_texts(places: slice) -> torch.Tensor:
        rows = [tokens.encode(text)[: task.context or 128] for text in texts[places]]
        found = []
        for row in rows:
            ids = torch.tensor([row])
            logits = model.module(input_ids=ids[:, :-1], use_cache=False).logits[0]
            found.append(functional.cross_entropy(logits, ids[0, 1:]))
        return torch.stack(found).mean()

    return of_texts, len(texts)


def stored_names(model: LiveModel, tensors: Mapping[str, Any]) -> dict[str, str]:
    """Parameter in the live model -> tensor in the file; transformers renames some, so contents are compared."""
    by_bytes: dict[bytes, list[str]] = {}
    for name, tensor in tensors.items():
        by_bytes.setdefault(as_torch(tensor).float().numpy().tobytes(), []).append(name)
    found = {}
    for name, parameter in model.module.named_parameters():
        same = by_bytes.get(parameter.detach().numpy().tobytes(), [])
        exact = name if name in same else same[0] if len(same) == 1 else None
        if exact is None:
            raise SystemExit(f"{name} of {model.name} is none, or several, of the stored tensors")
        found[name] = exact
    return found


def gradients(
    model: LiveModel, stored: Mapping[str, str], loss: torch.Tensor
) -> dict[str, np.ndarray]:
    """The loss's gradient by stored tensor."""
    names = [n for n, _ in model.module.named_parameters()]
    parameters = [p for _, p in model.module.named_parameters()]
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {stored[n]: g.numpy() for n, g in zip(names, grads, strict=True) if g is not None}


def adam_moments(
    model: LiveModel, stored: Mapping[str, str], losses: Losses, count: int
) -> dict[str, np.ndarray]:
    """exp_avg_sq after BATCHES batches at a standstill, bias corrected."""
    moments: dict[str, np.ndarray] = {}
    for step in range(BATCHES):
        first = step * BATCH % max(count - BATCH, 1)
        found = gradients(model, stored, losses(slice(first, first + BATCH)))
        for name, gradient in found.items():
            square = (1 - BETA) * np.square(gradient, dtype=np.float64)
            moments[name] = BETA * moments.get(name, 0.0) + square
    return {name: moment / (1 - BETA**BATCHES) for name, moment in moments.items()}


def gram_matrices(
    model: LiveModel, stored: Mapping[str, str], losses: Losses, count: int
) -> dict[str, np.ndarray]:
    """X^T X / rows of X for the inputs X of every linear layer, by the stored name of its weight."""
    sums: dict[str, np.ndarray] = {}
    rows: dict[str, int] = {}

    def hook(name: str) -> Callable[..., None]:
        def add(_: Any, inputs: tuple[torch.Tensor, ...], __: Any) -> None:
            x = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).double().numpy()
            sums[name] = sums.get(name, 0.0) + x.T @ x
            rows[name] = rows.get(name, 0) + len(x)

        return add

    # A head that is tied to the embedding has no weight of its own.
    linears = {
        stored[f"{name}.weight"]: module
        for name, module in model.module.named_modules()
        if isinstance(module, torch.nn.Linear) and f"{name}.weight" in stored
    }
    hooks = [module.register_forward_hook(hook(name)) for name, module in linears.items()]
    with torch.no_grad():
        for first in range(0, count, BATCH):
            losses(slice(first, min(first + BATCH, count)))
    for handle in hooks:
        handle.remove()
    return {name: total / rows[name] for name, total in sums.items()}


def as_float32(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(tensor, np.float32) for name, tensor in tensors.items()}


if __name__ == "__main__":
    main()
