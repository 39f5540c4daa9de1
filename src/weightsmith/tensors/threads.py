"""How many threads there are, and work that is spread over them, with results in the order of the items."""

from __future__ import annotations

import collections
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from weightsmith.errors import UsageError
from weightsmith.tensors.blas import one_blas_thread
from weightsmith.wording import literal

if TYPE_CHECKING:
    from concurrent.futures import Future

Item = TypeVar("Item")
Result = TypeVar("Result")

# More than any machine has cores; each holds a tile of every input, and a system has a limit of its own.
MOST_THREADS = 1024


def thread_count(threads: int | None) -> int:
    """As many as were asked for, or one for each core; raises UsageError for no number of threads that can be."""
    if threads is None:
        return os.cpu_count() or 1
    if (
        isinstance(threads, bool)
        or not isinstance(threads, int)
        or not 1 <= threads <= MOST_THREADS
    ):
        raise UsageError(
            f"A run has 1 to {MOST_THREADS} threads, not {literal(threads)}; leave the number out for one per core."
        )
    return threads


def in_order(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    threads: int,
    *,
    size: Callable[[Item], int] | None = None,
    limit: int = 0,
) -> Iterator[Result]:
    """`work(item)` for all items, in their order, a few at a time ahead of who takes the results.

    With `size`, those under way or not yet taken have at most `limit` bytes together; an item above the limit runs
    alone. Errors of `work` pass through in the order of items. One thread is the caller's own.
    """
    if threads < 2:
        yield from map(work, items)
        return
    from concurrent.futures import ThreadPoolExecutor

    pending: collections.deque[tuple[int, Future[Result]]] = collections.deque()
    held = 0
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                needed = 0 if size is None else size(item)
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


def in_parallel(
    work: Callable[[Item], Result], items: Sequence[Item], threads: int | None = None
) -> list[Result]:
    """`work` of each item, on `threads` threads (the processors by default) with one BLAS thread each, in order."""
    with one_blas_thread():
        return list(in_order(work, items, min(threads or os.cpu_count() or 1, len(items))))
