"""What tensors that are computed while they are read take: bytes of their parts, memory, multiplications."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from weightsmith.deltas import ChangedTensor
from weightsmith.tensors.stored import LazyTensor

# Copies of factors in float64, and of a block of a change, its base and their sum while it is computed.
_NUMBER = 8
_BLOCK_BYTES = 4 * _NUMBER * (1 << 16)
_HELD = 16


def stored_bytes(tensor: LazyTensor) -> int:
    """Bytes that one reading of a tensor takes from files: of one with adapters its base and their factors."""
    if isinstance(tensor, ChangedTensor):
        return sum(part.nbytes for part in tensor.sources)
    return tensor.nbytes


def change_bytes(tensors: Iterable[LazyTensor], threads: int) -> int:
    """Memory of the factors that are held at a time, and of the blocks that threads compute; 0 without adapters."""
    factors = sorted(
        (_NUMBER * sum(part.numel for part in changed.factors) for changed in _changed(tensors)),
        reverse=True,
    )
    return sum(factors[:_HELD]) + (threads * _BLOCK_BYTES if factors else 0)


def product_operations(tensor: LazyTensor) -> int:
    """Multiplications for the change of one tensor: rows x columns x rank, the rank taken from the sizes of factors."""
    return sum(
        changed.numel * sum(part.numel for part in changed.factors) // _border(changed.shape)
        for changed in _changed([tensor])
    )


def _border(shape: tuple[int, ...]) -> int:
    """Rows and columns together: a pair of factors has rank times as many numbers."""
    rows = shape[0] if shape else 1
    columns = 1
    for length in shape[1:]:
        columns *= length
    return max(1, rows + columns)


def _changed(tensors: Iterable[LazyTensor]) -> Iterator[ChangedTensor]:
    for tensor in tensors:
        if isinstance(tensor, ChangedTensor):
            yield tensor
        else:
            behind = getattr(tensor, "stored", None) or getattr(tensor, "source", None)
            yield from () if behind is None else _changed([behind])
