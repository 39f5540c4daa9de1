"""All codecs by name: what can be tried on a change, and how a stored one is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping

import numpy as np

from weightsmith.deltas.codecs.banded import Banded
from weightsmith.deltas.codecs.codec import (
    Codec,
    CodecChoice,
    Encoded,
    Parameters,
    StoredChange,
    part_in_memory,
)
from weightsmith.deltas.codecs.delta_codec import Delta, floats
from weightsmith.deltas.codecs.held import BLOCK
from weightsmith.deltas.codecs.lloyd import Lloyd
from weightsmith.deltas.codecs.lossless import (
    LOSSLESS,
    SAME,
    WHOLE,
    decode_lossless,
    decode_same,
    decode_whole,
)
from weightsmith.deltas.codecs.low_rank_codec import LowRankCodec
from weightsmith.deltas.codecs.refined import REFINED, decode_refined
from weightsmith.deltas.codecs.sign import Sign, Sign2
from weightsmith.deltas.codecs.sparse import Sparse
from weightsmith.errors import CheckpointError, UsageError
from weightsmith.tensors import DType, LazyTensor, shown

_LOSSY: dict[str, Codec] = {
    codec.name: codec
    for codec in (
        Sign(),
        Sign2(),
        Lloyd("ternary", 3),
        Lloyd("lloyd2", 4),
        Lloyd("lloyd3", 8),
        Lloyd("lloyd4", 16),
        Sparse(),
        LowRankCodec(),
        Banded(),
    )
}
_DECODERS: dict[str, Callable[[StoredChange], LazyTensor]] = {
    SAME: decode_same,
    LOSSLESS: decode_lossless,
    REFINED: decode_refined,
    WHOLE: decode_whole,
    **{name: codec.decoded for name, codec in _LOSSY.items()},
}
LOSSY = tuple(_LOSSY)
# Norms, biases and the like are so small that only exact codecs are tried on them.
_SMALLEST = 4096


def choices(delta: Delta, codecs: Collection[str] = LOSSY) -> list[CodecChoice]:
    """The lossy codecs, of those named, that are worth trying on this change, with their settings.

    None for vectors, tensors of fewer than 4096 elements, and changes that are zero or not finite: these are stored
    exactly. Raises UsageError for a name that is no lossy codec.
    """
    found = [codec for name, codec in _LOSSY.items() if name in _known(codecs)]
    if len(delta.shape) < 2 or delta.numel < _SMALLEST or delta.is_zero or not delta.is_finite:
        return []
    return [choice for codec in found for choice in codec.choices(delta)]


def encode(delta: Delta, choice: CodecChoice) -> Encoded:
    """The change in a lossy codec, every number really packed. It depends on the change and the choice alone.

    Raises NonFiniteError if the change holds NaN or infinite numbers, UsageError for an unknown codec, bad settings or
    a tensor without elements.
    """
    _known([choice.codec])
    if not delta.numel:
        raise UsageError(
            f"{delta.target.location} has no elements: only an exact codec can store it."
        )
    delta.require_finite()
    return _LOSSY[choice.codec].encode(delta, choice.settings)


def decoded(
    codec: str,
    parameters: Parameters,
    parts: Mapping[str, LazyTensor],
    base: LazyTensor | None,
    name: str,
    dtype: DType,
    shape: tuple[int, ...],
) -> LazyTensor:
    """The tensor of a stored change, decoded block by block while it is read: any range, in any thread, the same bits.

    Lossy changes are added to the base in float32 (float64 where the base is) and rounded once to `dtype`. Raises
    CheckpointError for an unknown codec and for parts, parameters or a base that do not fit; when a damaged block is
    read, then.
    """
    decode = _DECODERS.get(codec)
    if decode is None:
        raise CheckpointError(
            f"Tensor {shown(name)} is stored in the codec {shown(codec)}, which is unknown; the known ones are "
            f"{', '.join(_DECODERS)}: a newer weightsmith may read it."
        )
    return decode(StoredChange(codec, parameters, parts, base, name, dtype, shape))


def in_memory(
    encoded: Encoded,
    base: LazyTensor | None,
    name: str,
    dtype: DType,
    shape: tuple[int, ...],
) -> LazyTensor:
    """`decoded`, from the arrays of a change that was just encoded."""
    parts = {part: part_in_memory(part, array) for part, array in encoded.parts.items()}
    return decoded(encoded.codec, encoded.parameters, parts, base, name, dtype, shape)


def measured_error(encoded: Encoded, base: LazyTensor, target: LazyTensor) -> float:
    """||decoded - target|| / ||target - base||, of what decoding really gives, rounded to the target's dtype.

    0.0 where nothing changes and nothing is decoded otherwise, infinite where something is.
    """
    found = in_memory(encoded, base, target.name, target.dtype, target.shape)
    lost, changed = (
        _distance_squared(other, target) for other in (found, Delta(base, target).base)
    )
    if not changed:
        return math.inf if lost else 0.0
    return math.sqrt(lost / changed)


def _distance_squared(one: LazyTensor, other: LazyTensor) -> float:
    parts = []
    for start in range(0, other.numel, BLOCK):
        stop = min(start + BLOCK, other.numel)
        gap = floats(one, start, stop).astype(np.float64) - floats(other, start, stop)
        parts.append(float(gap @ gap))
    return math.fsum(parts)


def _known(codecs: Collection[str]) -> Collection[str]:
    for name in codecs:
        if name not in _LOSSY:
            raise UsageError(f"{shown(name)} is no lossy codec: use one of {', '.join(_LOSSY)}.")
    return codecs
