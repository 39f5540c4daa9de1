"""The one training loop of the vision families: seeded batches, AdamW, a warm-up and a half cosine, one thread."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn import functional

Within = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast: `rate` is the largest learning rate of AdamW."""

    steps: int
    rate: float
    batch: int = 64
    warm_up: int = 20
    decay: float = 0.01
    second_beta: float = 0.999
    seed: int = 0

    def settings(self) -> dict[str, Any]:
        """The numbers, for a family's settings."""
        return asdict(self)


@contextmanager
def one_thread() -> Iterator[None]:
    """A single thread of torch, so that sums are taken in one order on every machine of a kind."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train(
    parameters: Sequence[torch.nn.Parameter],
    logits: Callable[[torch.Tensor], torch.Tensor],
    inputs: torch.Tensor,
    labels: torch.Tensor,
    schedule: Schedule,
    within: Within,
) -> None:
    """Minimise cross-entropy over shuffled batches, in place."""
    optimizer = torch.optim.AdamW(
        parameters,
        lr=schedule.rate,
        weight_decay=schedule.decay,
        betas=(0.9, schedule.second_beta),
    )
    batches = _batches(len(inputs), schedule)
    for step in range(schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = schedule.rate * _share(step, schedule)
        chosen = next(batches)
        loss = functional.cross_entropy(logits(inputs[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        within(step + 1, schedule.steps)


def _share(step: int, schedule: Schedule) -> float:
    """The share of the largest learning rate at a step."""
    rising = min(1.0, (step + 1) / schedule.warm_up)
    return rising * (0.5 + 0.5 * math.cos(math.pi * step / schedule.steps))


def _batches(count: int, schedule: Schedule) -> Iterator[torch.Tensor]:
    """Indices of full batches, each epoch in a new order."""
    generator = torch.Generator().manual_seed(schedule.seed)
    while True:
        order = torch.randperm(count, generator=generator)
        for first in range(0, count - schedule.batch + 1, schedule.batch):
            yield order[first : first + schedule.batch]
