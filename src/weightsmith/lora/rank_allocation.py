"""A byte budget spread over tensors: one rank at a time to the tensor that gains most by it.

One more direction of tensor t takes c_t bytes and lowers the squared error by sigma^2. Because singular values fall,
the directions of the largest sigma^2 / c_t have the least error of all choices of as many bytes (Eckart and Young,
1936); only the last bytes, too few for the next direction, may be spent better.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from weightsmith.deltas import Matrix
from weightsmith.lora.decomposing import ChangeDirections

_NONE = np.zeros(0)
# Applies a function to all items, in their order, as many at a time as there are threads.
Mapping = Callable[[Callable[[int], ChangeDirections], Iterable[int]], Iterable[ChangeDirections]]


def spread(
    searches: Sequence[Iterator[ChangeDirections]],
    costs: Sequence[int],
    budget_bytes: int,
    rank: int | None = None,
    mapped: Mapping = map,
) -> list[int]:
    """The rank of each tensor, from `decompositions` of it that know ever more directions; `rank` is a limit.

    Further directions are found for those tensors only of which all known ones are worth their bytes. Memory is that
    of singular values.
    """
    values: list[Matrix] = [_NONE] * len(searches)
    is_whole = [False] * len(searches)
    short = list(range(len(searches)))
    while True:
        for number, found in zip(short, mapped(lambda i: next(searches[i]), short), strict=True):
            values[number], is_whole[number] = found.values[:rank], found.is_whole
        ranks = allocate(values, costs, budget_bytes)
        short = [
            i
            for i, taken in enumerate(ranks)
            if taken == len(values[i]) and not is_whole[i] and taken != rank
        ]
        if not short:
            return ranks


def allocate(values: Sequence[Matrix], costs: Sequence[int], budget_bytes: int) -> list[int]:
    """The rank of each tensor, from its singular values (falling) and the bytes of one rank.

    Ties go to the first tensor. A tensor whose next direction does not fit gets no more; smaller ones still may.
    """
    ranks = [0] * len(values)
    left = budget_bytes
    queue = [
        (-(float(found[0]) ** 2) / cost, number)
        for number, (found, cost) in enumerate(zip(values, costs, strict=True))
        if len(found)
    ]
    heapq.heapify(queue)
    while queue:
        _, number = heapq.heappop(queue)
        if costs[number] > left:
            continue
        left -= costs[number]
        ranks[number] += 1
        rank = ranks[number]
        if rank < len(values[number]):
            gain = float(values[number][rank]) ** 2 / costs[number]
            heapq.heappush(queue, (-gain, number))
    return ranks
