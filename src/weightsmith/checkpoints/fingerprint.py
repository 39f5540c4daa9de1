"""Which weights are these? A digest that is cheap to take, since it reads a sample of every tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

from weightsmith.checkpoints.checkpoint import Checkpoint
from weightsmith.tensors import LazyTensor, piece_digest, read_bytes

FINGERPRINT_SCHEME = "xxh3-sample-1"
_RUNS = 16
_RUN_ELEMENTS = 256


def fingerprint(checkpoint: Checkpoint) -> str:
    """A digest over every tensor's name, dtype, shape and a sample of its bytes, as "xxh3-sample-1:<32 hex digits>".

    The sample is the whole tensor up to 4096 elements, and else 16 evenly spread runs of 256 elements, the first and
    the last among them. Training moves nearly every weight, so another checkpoint of the same shapes has another
    fingerprint; a change of a few elements by hand can be missed. It does not depend on files, shards or order.
    Raises CheckpointError where weights cannot be read.
    """
    return tensors_fingerprint(checkpoint.tensors)


def tensors_fingerprint(tensors: Mapping[str, LazyTensor]) -> str:
    """The same digest over some tensors by their names."""
    state = hashlib.blake2b(f"{FINGERPRINT_SCHEME};".encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        extent = ",".join(str(length) for length in tensor.shape)
        encoded = f"{name};{tensor.dtype};{extent};".encode()
        state.update(len(encoded).to_bytes(8, "little") + encoded)
        state.update(piece_digest(_sample(tensor)))
    return f"{FINGERPRINT_SCHEME}:{state.hexdigest()}"


def _sample(tensor: LazyTensor) -> bytes:
    return b"".join(read_bytes(tensor, start, stop) for start, stop in _runs(tensor.numel))


def _runs(numel: int) -> Iterator[tuple[int, int]]:
    if numel <= _RUNS * _RUN_ELEMENTS:
        yield 0, numel
        return
    for i in range(_RUNS):
        start = i * (numel - _RUN_ELEMENTS) // (_RUNS - 1)
        yield start, start + _RUN_ELEMENTS
