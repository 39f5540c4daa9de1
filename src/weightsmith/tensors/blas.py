"""Linear algebra on one thread of its library, so that results do not depend on how many the machine has.

Work is spread over threads by tensors and tiles; threads of the library would change the order of sums as well.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_lock = threading.Lock()
_inside = 0
_limit: Any = None


@functools.cache
def _controller() -> Any:
    # Imported here because it looks through the loaded libraries, numpy's among them.
    import numpy as np  # noqa: F401
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def start_blas_on_one_thread() -> None:
    """Have OpenBLAS, which numpy loads, start no threads that would only wait: for a process that merges and no more.

    What the user has set stays; where numpy is loaded already nothing changes.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Within the block numpy's matrix products and decompositions use one thread each, whoever is in such a block.

    The number of threads that was set before comes back when the last thread leaves. Accelerate (macOS) cannot be
    limited; it keeps its own count. It serves as a decorator too.
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
