"""Tensors that are carried over byte for byte, and those that all inputs must agree on."""

from __future__ import annotations

from collections.abc import Sequence

from weightsmith.engine.outputs.storage import Sink
from weightsmith.engine.planning.tiles import piece_digests, plain_round
from weightsmith.engine.running.job_facts import Finished
from weightsmith.engine.running.scheduler import Rounds, Worker
from weightsmith.errors import CompatibilityError
from weightsmith.tensors import LazyTensor, tensor_digest


def copy_tensor(stored: Sequence[LazyTensor], sink: Sink, target: int) -> Rounds:
    """Copy the first tensor; the others must have the same bytes. Returns `Finished`.

    Raises CompatibilityError at the first element that differs.
    """
    first = stored[0]
    itemsize = first.dtype.itemsize

    def run(worker: Worker, start: int, count: int) -> list[bytes]:
        data = worker.buffer(0, count * itemsize)
        first.read_into(start, start + count, data)
        for other in stored[1:]:
            compared = worker.buffer(1, count * itemsize)
            other.read_into(start, start + count, compared)
            if compared != data:
                _refuse(first, other, data, compared, start)
        sink.write(start, data)
        return piece_digests(data, first.shape, first.dtype)

    results = yield plain_round(run, first.shape, target)
    digest = tensor_digest(first.dtype, first.shape, [found for part in results for found in part])
    return Finished(digest, dict.fromkeys(range(len(stored)), digest), (0, -1), ())


def _refuse(
    first: LazyTensor, other: LazyTensor, data: memoryview, compared: memoryview, start: int
) -> None:
    itemsize = first.dtype.itemsize
    at = next(
        i
        for i in range(0, len(data), itemsize)
        if data[i : i + itemsize] != compared[i : i + itemsize]
    )
    raise CompatibilityError(
        f"{first.location} and {other.location} hold {first.dtype} values, which are not merged but must "
        f"agree, and they differ at element {start + at // itemsize}; name a `base_model` whose values are to be kept."
    )
