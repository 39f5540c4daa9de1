"""Signs and a scale (BitDelta; Liu et al. 2024, arXiv:2402.10193), and a second pass over what is left.

    sign    change = a s,            s = sign(change), 0 counting as +;  a = mean |change|, of the tensor or of each row
    sign2   change = a s + b t,      t = sign(change - a s),             b = mean |change - a s|

The scale is the best one for these signs. Bits are packed as in `deltas.bits`; no calibration. Relative error of a
Gaussian change: sqrt(1 - 2 / pi) = 0.603 and 0.361; of a Laplacian one 0.707 and 0.479.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.deltas.bits import PackedBits, packed_bytes
from weightsmith.deltas.codecs.applied import with_graph
from weightsmith.deltas.codecs.codec import (
    CodecChoice,
    Encoded,
    Parameters,
    StoredChange,
    part_in_memory,
)
from weightsmith.deltas.codecs.coded_rows import SCALES, RowNumbers, checked_scales, suited_scales
from weightsmith.deltas.codecs.delta_codec import Change, Delta
from weightsmith.deltas.codecs.held import BLOCK
from weightsmith.graph import Value, source
from weightsmith.tensors import DType, LazyTensor, matrix_shape


class Sign:
    """One bit per element and a scale, for the tensor or for each row."""

    name = "sign"

    def choices(self, delta: Delta) -> Sequence[CodecChoice]:
        """The kind of scales that suits the rows."""
        return [CodecChoice(self.name, {"scales": suited_scales(delta)})]

    def encode(self, delta: Delta, settings: Parameters) -> Encoded:
        """Settings: scales, "tensor" (default) or "row"."""
        kind = checked_scales(settings)
        scale = [delta.mean_size] if kind == "tensor" else delta.row_sizes
        parts: dict[str, NDArray[Any]] = {
            "bits": _packed(lambda block: block >= 0, delta),
            "scale": np.array(scale, np.float32),
        }
        return Encoded(self.name, {"scales": kind}, parts)

    def decoded(self, stored: StoredChange) -> LazyTensor:
        """base + scale (2 bit - 1)."""
        rows, columns = matrix_shape(stored.shape)
        kind = stored.choice("scales", SCALES)
        mask = _mask(stored, "bits")
        scale = _scales(stored, 1 if kind == "tensor" else rows)
        if kind == "tensor":
            return with_graph(stored, (mask,), _one_scale, (scale,))
        numbers = RowNumbers(stored.name, stored.shape, columns, scale)
        return with_graph(stored, (mask, numbers), _row_scales)


class Sign2:
    """Two bits per element and two scales: the signs, and the signs of what they leave."""

    name = "sign2"

    def choices(self, delta: Delta) -> Sequence[CodecChoice]:
        """One choice."""
        return [CodecChoice(self.name)]

    def encode(self, delta: Delta, settings: Parameters) -> Encoded:
        """No settings."""
        first = np.float32(delta.mean_size)
        left = (_left(block, first) for block in delta.blocks())
        mean = math.fsum(float(np.abs(b).sum(dtype=np.float64)) for b in left) / delta.numel
        parts: dict[str, NDArray[Any]] = {
            "bits": _packed(lambda block: block >= 0, delta),
            "second_bits": _packed(lambda block: _left(block, first) >= 0, delta),
            "scale": np.array([first, mean], np.float32),
        }
        return Encoded(self.name, {}, parts)

    def decoded(self, stored: StoredChange) -> LazyTensor:
        """base + (a (2 bit - 1) + b (2 second bit - 1))."""
        masks = (_mask(stored, "bits"), _mask(stored, "second_bits"))
        both = stored.array("scale", DType.FLOAT32, (2,))
        scales = tuple(part_in_memory("scale", both[i : i + 1]) for i in range(2))
        return with_graph(stored, masks, _two_scales, scales)


def _one_scale(scale: float) -> Value:
    return source(0) + (source(1) * (2 * scale) - scale)


def _row_scales() -> Value:
    return source(0) + (source(1) * (2.0 * source(2)) - source(2))


def _two_scales(first: float, second: float) -> Value:
    change = (source(1) * (2 * first) - first) + (source(2) * (2 * second) - second)
    return source(0) + change


def _left(block: Change, scale: np.float32) -> Change:
    """What the first signs leave."""
    return block - np.where(block >= 0, scale, -scale)


def _packed(test: Callable[[Change], NDArray[np.bool_]], delta: Delta) -> NDArray[np.uint8]:
    bits = np.empty(packed_bytes(delta.numel), np.uint8)
    for number, block in enumerate(delta.blocks()):
        found = np.packbits(test(block), bitorder="little")
        bits[number * BLOCK // 8 :][: found.size] = found
    return bits


def _mask(stored: StoredChange, part: str) -> PackedBits:
    packed = stored.part(part, DType.UINT8, (packed_bytes(stored.numel),))
    return PackedBits(stored.name, stored.shape, packed)


def _scales(stored: StoredChange, count: int) -> LazyTensor:
    return part_in_memory("scale", stored.array("scale", DType.FLOAT32, (count,)))
