"""Greedy decoding: the likeliest token each time, with what was computed for earlier ones kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

# Runs the network on inputs with what it kept of the earlier ones.
Step = Callable[[Mapping[str, Any]], Any]


def continue_rows(step: Step, rows: Tensor, most: int, ends: Sequence[int]) -> list[list[int]]:
    """The new tokens of every row [B, T], without the one that ended it."""
    import torch

    stops = torch.tensor(tuple(ends) or (-1,), device=rows.device)
    finished = torch.zeros(len(rows), dtype=torch.bool, device=rows.device)
    found: list[Tensor] = []
    past = None
    for _ in range(most):
        result = step({"rows": rows, "past_key_values": past})
        past = result.past_key_values
        best = result.logits[:, -1].argmax(1)
        finished |= torch.isin(best, stops)
        found.append(torch.where(finished, -1, best))
        if bool(finished.all()):
            break
        rows = best[:, None]
    made = torch.stack(found, 1).tolist() if found else [[] for _ in rows]
    return [[token for token in row if token >= 0] for row in made]
