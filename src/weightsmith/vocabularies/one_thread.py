"""Linear algebra on one thread of its library, so that results do not depend on how many the machine has."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_lock = threading.Lock()
_inside = 0
_limit: Any = None


@functools.cache
def _controller() -> Any:
    # Imported here because it looks through the loaded libraries, numpy's among them.
    import numpy as np  # noqa: F401
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Within the block numpy's matrix products and decompositions use one thread each, whoever is in such a block.

    The number of threads that was set before comes back when the last thread leaves. Accelerate (macOS) cannot be
    limited; it keeps its own count.
    """
    global _inside, _limit
    with _lock:
        _inside += 1
        if _inside == 1:
            _limit = _controller().limit(limits=1, user_api="blas")
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if _inside == 0:
                _limit.restore_original_limits()


def in_parallel(
    work: Callable[[_Item], _Result], items: Sequence[_Item], threads: int | None = None
) -> list[_Result]:
    """`work` of each item, on `threads` threads (the processors by default) with one BLAS thread each, in order."""
    workers = min(threads or os.cpu_count() or 1, len(items))
    with one_blas_thread():
        if workers < 2:
            return [work(item) for item in items]
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(work, items))
