"""A Lloyd-Max codebook per tensor: 3 levels (`ternary`), 4, 8 or 16 (`lloyd2`, `lloyd3`, `lloyd4`).

    change = level[code]    or    r level[code],   r the root mean square of the row

Codes are packed plain or under Huffman codes, whichever is shorter. Relative error of a Gaussian change: 0.436,
0.343, 0.186, 0.097 (Max, 1960); of a Laplacian one 0.514, 0.420, 0.233, 0.124.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.deltas.codecs.applied import on_base
from weightsmith.deltas.codecs.codebook import fitted_codebook
from weightsmith.deltas.codecs.codec import CodecChoice, Encoded, Parameters, StoredChange
from weightsmith.deltas.codecs.coded_rows import SCALES, along_rows, checked_scales, suited_scales
from weightsmith.deltas.codecs.coded_streams import BlockStream, joined, stored_sizes
from weightsmith.deltas.codecs.codes import packed_codes, plain_bytes, unpacked_codes
from weightsmith.deltas.codecs.delta_codec import Change, Delta, histogram_of
from weightsmith.deltas.codecs.held import BLOCK
from weightsmith.tensors import DType, LazyTensor, matrix_shape

_STREAM = ("codes", "table")


@dataclass(frozen=True, slots=True)
class Lloyd:
    """A codec of `levels` levels."""

    name: str
    levels: int

    def choices(self, delta: Delta) -> Sequence[CodecChoice]:
        """The kind of scales that suits the rows."""
        return [CodecChoice(self.name, {"scales": suited_scales(delta)})]

    def encode(self, delta: Delta, settings: Parameters) -> Encoded:
        """Settings: scales, "tensor" (default) or "row"."""
        kind = checked_scales(settings)
        parts: dict[str, NDArray[Any]] = {}
        values, histogram = delta.blocks, delta.histogram
        if kind == "row":
            parts["scale"] = np.sqrt(delta.row_means(_squares)).astype(np.float32)
            values = functools.partial(_by_rows, delta, parts["scale"])
            histogram = histogram_of(values())
        codebook = fitted_codebook(histogram, self.levels)
        blocks = [[packed_codes(codebook.codes(b), self.levels)] for b in values()]
        parts["codes"], parts["table"] = joined(blocks, 1)
        return Encoded(self.name, {"scales": kind}, {"levels": codebook.levels, **parts})

    def decoded(self, stored: StoredChange) -> LazyTensor:
        """base + level of the code, times the row's scale."""
        kind = stored.choice("scales", SCALES)
        rows, columns = matrix_shape(stored.shape)
        scale = stored.array("scale", DType.FLOAT32, (rows,)) if kind == "row" else None
        values = stored.array("levels", DType.FLOAT32, (self.levels,))
        sizes = stored_sizes(stored)
        limits = np.array([plain_bytes(int(size), self.levels) for size in sizes], np.int64)[
            :, None
        ]
        stream = BlockStream(stored, _STREAM, (0, 1), len(sizes), lambda _table: limits)

        def change(number: int) -> NDArray[np.float32]:
            codes = unpacked_codes(stream.block(number)[0], int(sizes[number]), self.levels)
            if codes is None:
                raise stored.damaged(f"cannot be decompressed in block {number}")
            found: NDArray[np.float32] = values[codes]
            if scale is not None:
                found *= _row_scales(scale, columns, number, found.size)
            return found

        return on_base(stored, change)


def _squares(block: Change) -> NDArray[np.float64]:
    return np.square(block, dtype=np.float64)


def _row_scales(
    scale: NDArray[np.float32], columns: int, number: int, count: int
) -> NDArray[np.float32]:
    start = number * BLOCK
    stop = start + count
    first = start // columns
    return along_rows(scale[first : -(-stop // columns)], first, columns, start, stop)


def _by_rows(delta: Delta, scale: NDArray[np.float32]) -> Iterator[Change]:
    """The blocks, each element over its row's scale; rows without a change stay zero."""
    divisors = np.where(scale > 0, scale, np.float32(1))
    columns = delta.matrix[1]
    for number, block in enumerate(delta.blocks()):
        yield block / _row_scales(divisors, columns, number, block.size)
