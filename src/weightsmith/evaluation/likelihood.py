"""Log-likelihoods of tokens under a causal language model, in batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from weightsmith.errors import NonFiniteError
from weightsmith.evaluation.batches import batches, padded
from weightsmith.evaluation.metrics import Floats
from weightsmith.live import RunningModel
from weightsmith.progress import Progress

_BATCH = 16


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens that are read together; the last `scored` of them are predicted, each from those before it."""

    tokens: tuple[int, ...]
    scored: int


def windows(
    prefix: Sequence[int], tokens: Sequence[int], context: int, stride: int
) -> list[Window]:
    """Windows in which every token is predicted once.

    The network reads at most `context` tokens at a time. The first window predicts as many; every further one predicts
    the next `stride` tokens, from context - stride tokens or more before them. Without a prefix the first token of a
    text has nothing to be predicted from and is left out.
    """
    stream = [*prefix, *tokens]
    found: list[Window] = []
    done = 1  # the first token of the stream is only read
    while done < len(stream):
        count = context if done == 1 else stride
        end = min(done + count, len(stream))
        start = max(0, end - 1 - context)
        found.append(Window(tuple(stream[start:end]), end - done))
        done = end
    return found


def nats_of(
    model: RunningModel, rows: Sequence[Window], batch_size: int | None, progress: Progress
) -> tuple[Floats, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """-log probability of the scored tokens of every window, [W], and whether each of them is the likeliest, [W].

    Raises NonFiniteError if the model gives NaN.
    """
    import torch
    from torch.nn import functional

    nats = np.zeros(len(rows))
    greedy = np.zeros(len(rows), np.bool_)
    with torch.inference_mode():
        for chosen in batches([len(row.tokens) for row in rows], batch_size or _BATCH, progress):
            inputs = padded([rows[i].tokens[:-1] for i in chosen], 0, model.device)
            labels = padded([rows[i].tokens[1:] for i in chosen], 0, model.device)
            logits = model.logits({"input_ids": inputs}).float()
            losses = functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
            likeliest = logits.argmax(2) == labels
            for row, i in enumerate(chosen):
                end = len(rows[i].tokens) - 1
                own = slice(end - rows[i].scored, end)
                nats[i] = losses[row, own].double().sum().item()
                greedy[i] = bool(likeliest[row, own].all())
    if not np.isfinite(nats).all():
        raise NonFiniteError(
            f"{model.name!r} gives {int((~np.isfinite(nats)).sum())} texts a probability of zero or NaN; its weights "
            "are broken."
        )
    return nats, greedy
