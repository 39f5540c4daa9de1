"""How long a plan will take: bytes and elements of the plan, times rates that were measured.

    time = start + max(reading + computing, writing, disk)

Reading and computing are spread over the threads (up to the number of cores). Writing goes through
the system's page cache at the rate of one disk. The disk of the inputs only counts where they are not
cached: then the first pass comes from it. The rates are those of one small server (two cores, virtual
disk). They are meant to tell seconds from minutes from hours, not to be exact: other machines differ
by two or three times, and so does the same one under load.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

from weightsmith.engine.planning.plan import Plan
from weightsmith.engine.planning.planned_tensors import Action, TensorWork

# Bytes per second of one thread that copies from the page cache and digests what it copied.
_READ_RATE = 4.0e9
# Bytes per second into the page cache, all threads together, digest and final fsync included.
_WRITE_RATE = 0.9e9
# Bytes per second of a disk whose files are not cached.
_DISK_RATE = 0.9e9
# Seconds until the first tile, and per element of one input and pass.
_START = {"native": 0.5, "torch": 3.0}
_ELEMENT = {"native": 1.2e-9, "torch": 8.0e-9}
# Multiplications of float64 matrices per second and thread.
_PRODUCT_RATE = 5.0e9
# A pass over a tensor costs this in Python, however small the tensor is.
_TENSOR_PASS = 0.4e-3


@dataclass(frozen=True, slots=True)
class PredictedTime:
    """Predicted wall seconds: with the inputs in the page cache, and without."""

    warm_seconds: float
    cold_seconds: float


def predict(plan: Plan) -> PredictedTime:
    """The predicted time of a plan from the rates above."""
    cores = min(plan.threads, os.cpu_count() or 1)
    reading = plan.read_bytes / _READ_RATE
    computing = sum(count * _compute_seconds(plan, work) for work, count in plan.works)
    small = sum(count * work.passes for work, count in plan.works) * _TENSOR_PASS
    busy = (reading + computing) / cores + small
    start = _START[plan.backend.kind]
    writing = plan.write_bytes / _WRITE_RATE
    disk = plan.input_bytes / _DISK_RATE
    return PredictedTime(start + max(busy, writing), start + max(busy, writing, disk + writing))


def _compute_seconds(plan: Plan, work: TensorWork) -> float:
    if work.action is not Action.COMPUTE:
        return 0.0
    elements = sum(math.prod(source.shape) for source in work.sources)
    products = sum(source.cost.products for source in work.sources)
    return work.passes * (elements * _ELEMENT[plan.backend.kind] + products / _PRODUCT_RATE)
