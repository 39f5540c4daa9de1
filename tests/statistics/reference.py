"""Statistics written out: every gradient by autograd, every row of an input by itself, in transformers' own network."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

IGNORED = -100


def causal_logs(model, sample):
    logits = model(input_ids=sample.inputs["input_ids"][None]).logits[0, :-1]
    return logits.float().log_softmax(-1)


def item_logs(model, sample):
    """Log-probabilities [P, C] of an item of a network that predicts every token, or one class."""
    logits = model(**{name: tensor[None] for name, tensor in sample.inputs.items()}).logits[0]
    return (logits if logits.ndim == 2 else logits[None]).float().log_softmax(-1)


def gradients(model, value) -> dict[str, torch.Tensor]:
    """The gradients of a number by the names of parameters; those without a part in it are left out."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return {n: g for n, g in zip(names, found, strict=True) if g is not None}


def exact_fisher(model, samples, logs: Callable) -> dict[str, torch.Tensor]:
    """E_x sum_t sum_c p_t(c) (d log p_t(c) / d theta)^2."""
    sums: dict[str, torch.Tensor] = {}
    for sample in samples:
        own = logs(model, sample)
        for t, label in enumerate(sample.labels.tolist()):
            if label == IGNORED:
                continue
            for c in range(own.shape[1]):
                _add_squares(sums, gradients(model, own[t, c]), own[t, c].detach().exp())
    return {name: total / len(samples) for name, total in sums.items()}


def empirical_fisher(model, samples, logs: Callable, *, per_token: bool) -> dict[str, torch.Tensor]:
    """E_x (d log p(y | x) / d theta)^2 of whole sequences, or of each token."""
    sums: dict[str, torch.Tensor] = {}
    count = 0
    for sample in samples:
        own = logs(model, sample)
        places = [(t, y) for t, y in enumerate(sample.labels.tolist()) if y != IGNORED]
        groups = [[place] for place in places] if per_token else [places]
        for group in groups:
            _add_squares(sums, gradients(model, sum(own[t, y] for t, y in group)), 1.0)
            count += 1
    return {name: total / count for name, total in sums.items()}


def losses(model, samples, logs: Callable) -> Iterator[dict[str, torch.Tensor]]:
    """The gradients of each item's mean loss."""
    for sample in samples:
        own = logs(model, sample)
        places = [(t, y) for t, y in enumerate(sample.labels.tolist()) if y != IGNORED]
        yield gradients(model, -sum(own[t, y] for t, y in places) / len(places))


def passages(model, samples, chosen=(nn.Linear,)) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """All rows that modules read and give, [N, D] each, by the names of the modules, items run alone."""
    read: dict[str, list[torch.Tensor]] = {}
    given: dict[str, list[torch.Tensor]] = {}

    def hook(name):
        def keep(_, inputs, output):
            read.setdefault(name, []).append(inputs[0].reshape(-1, inputs[0].shape[-1]))
            given.setdefault(name, []).append(output.reshape(-1, output.shape[-1]))

        return keep

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if isinstance(module, chosen)
    ]
    with torch.no_grad():
        for sample in samples:
            model(**{name: tensor[None] for name, tensor in sample.inputs.items()})
    for handle in handles:
        handle.remove()
    return {n: (torch.cat(read[n]).double(), torch.cat(given[n]).double()) for n in read}


def _add_squares(sums, found, factor) -> None:
    for name, gradient in found.items():
        square = factor * gradient.double().square()
        sums[name] = sums.get(name, 0.0) + square
