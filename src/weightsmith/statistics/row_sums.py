"""Sums over rows: products of matrices, what a sum begins with, and how a symmetric one is stored."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from weightsmith.statistics.sum_space import SumSpace

if TYPE_CHECKING:
    from torch import Tensor

_COLUMNS = 512


def add_gram(total: Tensor, rows: Tensor) -> None:
    """total += X^T X for rows X [N, D], on and above the diagonal (and some of what lies below)."""
    for start in range(0, rows.shape[1], _COLUMNS):
        stop = start + _COLUMNS
        total[start:stop, start:] += rows[:, start:stop].T @ rows[:, start:]


def upper_of(matrix: Tensor) -> Tensor:
    """The rows of a matrix [D, D] from the diagonal on, one after another, in float32."""
    import torch

    return torch.cat([matrix[i, i:].float() for i in range(len(matrix))])


def zeros_to_sum(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """What a sum of this shape begins with, on the device of a tensor: float64 where it is small."""
    return SumSpace().zeros(math.prod(shape), str(like.device)).view(shape)


def add_to(sums: dict[str, Tensor], key: str, value: Tensor) -> None:
    """Add a value to the sum of its key, or let it be the first."""
    sums[key] = sums[key] + value if key in sums else value
