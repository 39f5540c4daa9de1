"""Digests of tensors and checkpoints that do not depend on files, shards or tiles.

Three levels: each *piece* of a tensor (see `pieces`) has an xxh3-128 digest of its little-endian
bytes, taken while it streams; a tensor's digest is blake2b-128 over its dtype, shape and the piece
digests in order; a checkpoint's digest is blake2b-128 over its tensors sorted by name. They detect
damage and change. They are no defence against someone who forges a collision on purpose: xxh3 is
not a cryptographic hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import xxhash

from weightsmith.tensors.digest_pieces import piece_elements, pieces
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.stored import Buffer, LazyTensor

TENSOR_SCHEME = "xxh3-tensor-1"
CHECKPOINT_SCHEME = "xxh3-checkpoint-1"


def piece_digest(buffer: Buffer) -> bytes:
    """xxh3-128 (16 bytes, big-endian as xxHash prints it) of the raw bytes of one piece."""
    return xxhash.xxh3_128_digest(buffer)


def tensor_digest(dtype: DType, shape: Sequence[int], piece_digests: Iterable[bytes]) -> str:
    """The digest of a tensor from the digests of all its pieces in order, as "xxh3-tensor-1:<32 hex
    digits>".
    """
    extent = ",".join(str(length) for length in shape)
    state = hashlib.blake2b(f"{TENSOR_SCHEME};{dtype};{extent};".encode(), digest_size=16)
    for digest in piece_digests:
        state.update(digest)
    return f"{TENSOR_SCHEME}:{state.hexdigest()}"


def checkpoint_digest(tensor_digests: Mapping[str, str]) -> str:
    """The digest of a checkpoint from the digests of its tensors by name; their order does not
    matter.
    """
    state = hashlib.blake2b(f"{CHECKPOINT_SCHEME};".encode(), digest_size=16)
    for name in sorted(tensor_digests):
        for part in (name, tensor_digests[name]):
            encoded = part.encode()
            state.update(len(encoded).to_bytes(8, "little"))
            state.update(encoded)
    return f"{CHECKPOINT_SCHEME}:{state.hexdigest()}"


def digest_tensor(tensor: LazyTensor) -> str:
    """Read a tensor once, one piece in memory at a time, and return its digest.

    Raises `CheckpointError` if the tensor cannot be read.
    """
    itemsize = tensor.dtype.itemsize
    length = min(piece_elements(tensor.shape), tensor.numel)
    buffer = memoryview(bytearray(length * itemsize))

    def digests() -> Iterable[bytes]:
        for start, stop in pieces(tensor.shape):
            piece = buffer[: (stop - start) * itemsize]
            tensor.read_into(start, stop, piece)
            yield piece_digest(piece)

    return tensor_digest(tensor.dtype, tensor.shape, digests())
