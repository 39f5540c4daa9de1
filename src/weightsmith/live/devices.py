"""The libraries and the device that a network needs, looked for before anything is read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from weightsmith.errors import ResourceError, UsageError
from weightsmith.live.libraries import reason_of
from weightsmith.wording import with_extra


def check_libraries(needed: list[str]) -> None:
    """Raise ResourceError where a library is not installed."""
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise ResourceError(f"Evaluation needs {' and '.join(missing)}; {with_extra('eval')}.")


def check_device(device: str) -> None:
    """Raise ResourceError for a device that is not here, UsageError for one that runs no models."""
    import torch

    kind = device.partition(":")[0]
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ResourceError(
            f"There is no device {device!r} here ({reason_of(error)}); use --device cpu."
        ) from error
    if kind not in ("cpu", "cuda", "mps"):
        raise UsageError(f"Models are evaluated on cpu, cuda or mps, not on {device!r}.")


def find_dtype(name: str) -> Any:
    """The dtype of torch that networks compute in; raises UsageError for one that they do not."""
    import torch

    if name not in ("float32", "bfloat16"):
        raise UsageError(f"Networks compute in float32 or bfloat16, not in {name!r}.")
    return getattr(torch, name)


@contextmanager
def deterministic(device: str) -> Iterator[None]:
    """Kernels that give the same bits every time, where a device has others too."""
    if not device.startswith("cuda"):
        yield
        return
    import torch

    # cuBLAS is deterministic with a workspace of its own only, and reads this when it begins.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with torch.backends.cudnn.flags(deterministic=True, benchmark=False, allow_tf32=False):
            yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warns)
