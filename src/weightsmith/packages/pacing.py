"""Work on tensors in several threads, in order and within the memory of the largest."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Work = TypeVar("Work")
Result = TypeVar("Result")


def paced(
    work: Callable[[Work], Result],
    items: Iterable[Work],
    size: Callable[[Work], int],
    *,
    limit: int,
    threads: int,
) -> Iterator[Result]:
    """`work(item)` for all items, in their order; those under way or not yet taken have at most `limit` bytes together.

    An item above the limit runs alone. Errors of `work` pass through in the order of items.
    """
    if threads < 2:
        yield from map(work, items)
        return
    pending: collections.deque[tuple[int, Future[Result]]] = collections.deque()
    held = 0
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                needed = size(item)
                while pending and (held + needed > limit or len(pending) > 2 * threads):
                    taken, future = pending.popleft()
                    yield future.result()
                    held -= taken
                pending.append((needed, pool.submit(work, item)))
                held += needed
            while pending:
                yield pending.popleft()[1].result()
        finally:
            for _, future in pending:
                future.cancel()
