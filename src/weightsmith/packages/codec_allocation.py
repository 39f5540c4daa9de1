"""Which codec each tensor gets: the least error that fits a number of bytes, or the fewest bytes within an error.

Each tensor has options, pairs of bytes and squared error. Under a budget B the sum of squared errors is to be smallest
while the bytes add up to at most B. Along the lower convex hull of a tensor's options each step costs bytes and removes
error; taken over all tensors in the order of error removed per byte, the steps give at every prefix the exact optimum
of the Lagrangian, and so of the budget that the prefix spends (Everett 1963; Shoham & Gersho 1988). What is left of a
budget in between goes to the single changes that remove most error, first steps of hulls and then any option.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.errors import UsageError


@dataclass(frozen=True, slots=True)
class Option:
    """What one codec costs for one tensor: bytes, and the squared error that it leaves."""

    nbytes: int
    squared_error: float


def hull(options: Sequence[Option]) -> list[int]:
    """The options on the lower convex hull, from few bytes to many, each with less error than the one before.

    Of equal options the first counts.
    """
    order = sorted(
        range(len(options)), key=lambda i: (options[i].nbytes, options[i].squared_error, i)
    )
    kept: list[int] = []
    for i in order:
        if kept and options[i].squared_error >= options[kept[-1]].squared_error:
            continue
        while len(kept) > 1 and _slope(options, kept[-2], kept[-1]) <= _slope(options, kept[-2], i):
            kept.pop()
        kept.append(i)
    return kept


def _slope(options: Sequence[Option], a: int, b: int) -> float:
    """Error removed per byte on the way from option a to the larger option b."""
    removed = options[a].squared_error - options[b].squared_error
    added = options[b].nbytes - options[a].nbytes
    return removed / added if added else float("inf")


def within_budget(tensors: Sequence[Sequence[Option]], budget: int) -> list[int]:
    """The option of each tensor so that all together have the least squared error within `budget` bytes.

    Exact at every budget that a prefix of the hulls' steps spends, and near it between. Raises UsageError with the
    smallest possible number of bytes where the budget is below it.
    """
    hulls = [hull(options) for options in tensors]
    chosen = [path[0] for path in hulls]
    spent = sum(options[i].nbytes for options, i in zip(tensors, chosen, strict=True))
    if spent > budget:
        raise UsageError(
            f"A budget of {budget:,} bytes is too small: these tensors and codecs need at least {spent:,}."
        )
    steps = [
        (-_slope(options, a, b), at, position)
        for at, (options, path) in enumerate(zip(tensors, hulls, strict=True))
        for position, (a, b) in enumerate(itertools.pairwise(path))
    ]
    reached = [0] * len(tensors)
    for _, at, position in sorted(steps):
        path, options = hulls[at], tensors[at]
        cost = options[path[position + 1]].nbytes - options[path[position]].nbytes
        # A step that does not fit ends its tensor's way; later steps of other tensors may still fit.
        if reached[at] == position and spent + cost <= budget:
            reached[at], chosen[at] = position + 1, path[position + 1]
            spent += cost
    _fill(tensors, chosen, budget - spent)
    return chosen


def _fill(tensors: Sequence[Sequence[Option]], chosen: list[int], left: int) -> None:
    """Spend what is left on single changes, the one that removes most error first, hull or not."""
    while True:
        best: tuple[float, int, int] | None = None
        for at, options in enumerate(tensors):
            now = options[chosen[at]]
            for i, option in enumerate(options):
                removed = now.squared_error - option.squared_error
                fits = option.nbytes - now.nbytes <= left
                if fits and removed > 0 and (best is None or removed > best[0]):
                    best = (removed, at, i)
        if best is None:
            return
        _, at, i = best
        left -= tensors[at][i].nbytes - tensors[at][chosen[at]].nbytes
        chosen[at] = i


def within_error(options: Sequence[Option], largest: float) -> int:
    """The option of fewest bytes whose squared error is at most `largest`; of equal ones that with the least error.

    Raises UsageError where there is none.
    """
    fitting = [i for i, option in enumerate(options) if option.squared_error <= largest]
    if not fitting:
        raise UsageError(
            "None of the codecs keeps within the error that was asked for: allow lossless as well."
        )
    return min(fitting, key=lambda i: (options[i].nbytes, options[i].squared_error, i))
