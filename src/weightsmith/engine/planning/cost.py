"""How long a plan will take: bytes and elements of the plan, times rates that were measured.

    time = start + max(reading + computing, writing, disk)

Reading and computing are spread over the threads (up to the number of cores). Writing goes through
the system's page cache at the rate of one disk. The disk of the inputs only counts where they are not
cached: then the first pass comes from it. The rates are those of one small server (two cores, virtual
disk). They are meant to tell seconds from minutes from hours, not to be exact: other machines differ
by two or three times, and so does the same one under load.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from weightsmith.engine.planning.plan import Plan
from weightsmith.engine.planning.planned_tensors import Action, PlannedTensor
from weightsmith.recipes import distinct_leaves
from weightsmith.tensors import ReadingCost

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
    computing = sum(_compute_seconds(plan, tensor) for tensor in plan.tensors)
    small = sum(tensor.passes for tensor in plan.tensors) * _TENSOR_PASS
    busy = (reading + computing) / cores + small
    start = _START[plan.backend.kind]
    writing = plan.write_bytes / _WRITE_RATE
    disk = input_bytes(plan) / _DISK_RATE
    return PredictedTime(start + max(busy, writing), start + max(busy, writing, disk + writing))


def input_bytes(plan: Plan) -> int:
    """Bytes of all stored tensors that a plan reads, each counted once."""
    leaves = {leaf for tensor in plan.tensors for leaf in distinct_leaves(tensor.output.formula)}
    return ReadingCost.of(plan.leaf(leaf) for leaf in leaves).stored_bytes


def _compute_seconds(plan: Plan, tensor: PlannedTensor) -> float:
    if tensor.action is not Action.COMPUTE:
        return 0.0
    sources = [plan.leaf(leaf) for leaf in distinct_leaves(tensor.output.formula)]
    elements = sum(source.numel for source in sources)
    products = ReadingCost.of(sources).products
    return tensor.passes * (elements * _ELEMENT[plan.backend.kind] + products / _PRODUCT_RATE)
