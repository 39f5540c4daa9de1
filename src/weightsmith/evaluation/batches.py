"""Running a network over many rows in batches of bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from weightsmith.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

ROW = "row"


def batches(lengths: Sequence[int], batch_size: int, progress: Progress) -> Iterator[list[int]]:
    """Positions of rows, the longest first, so that rows of a batch are about as long and memory runs out at once.

    `progress` hears of each batch when it is done.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    rows = progress.begin("", len(order), ROW)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        yield chosen
        rows.advance(len(chosen))
    rows.end()


def padded(rows: Sequence[Sequence[int]], filler: int, device: str) -> Tensor:
    """Rows of token ids [B, T], filled up on the right."""
    import torch

    longest = max(len(row) for row in rows)
    filled = [[*row, *[filler] * (longest - len(row))] for row in rows]
    return torch.tensor(filled, dtype=torch.int64, device=device)
