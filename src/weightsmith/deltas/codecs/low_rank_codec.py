"""The leading singular directions of a change.

    change = U diag(s) V^T        U: rows x rank, V^T: rank x columns in float16 or float32, s in float32

Of all changes of a rank this one is nearest (Eckart and Young, 1936); its relative error is the norm of the strengths
left out over that of all. Directions have unit length, so that float16 holds them to 2^-11 whatever the strengths.

Products are exact: factors are put on grids so coarse (2^-21 of the largest number for rank 1024, 2^-24 for rank 16)
that every sum of products fits the 53 bits of a float64. So no order of sums, thread or library can change a bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.deltas.codecs.applied import on_base
from weightsmith.deltas.codecs.codec import CodecChoice, Encoded, Parameters, StoredChange
from weightsmith.deltas.codecs.delta_codec import Delta
from weightsmith.deltas.codecs.directions import significant_rank
from weightsmith.deltas.codecs.held import KEPT
from weightsmith.errors import UsageError
from weightsmith.graph import Spectrum
from weightsmith.tensors import DType, LazyTensor, matrix_shape

NUMBERS = {"float16": DType.FLOAT16, "float32": DType.FLOAT32}
_RANKS = (1, 4, 16, 64, 256)
# Elements of rows that are multiplied at a time: always the same rows, so that bits do not depend on the tile.
_BLOCK = 1 << 18


class LowRankCodec:
    """Two factors of a rank."""

    name = "low_rank"

    def choices(self, delta: Delta) -> Sequence[CodecChoice]:
        """Powers of four as ranks up to that of the change, and that, while factors take at most 8 bits per element."""
        rows, columns = delta.matrix
        most = rows * columns // (2 * (rows + columns))
        full = significant_rank(delta.directions)
        ranks = [*(rank for rank in _RANKS if rank < full), full]
        return [CodecChoice(self.name, {"rank": rank}) for rank in ranks if 1 <= rank <= most]

    def encode(self, delta: Delta, settings: Parameters) -> Encoded:
        """Settings: rank, at most the shorter axis (of large matrices a quarter); numbers, "float16" or "float32"."""
        rank, found = settings.get("rank"), delta.directions
        if type(rank) is not int or not 1 <= rank <= len(found.values):
            raise UsageError(
                f"{rank!r} is no rank for {delta.target.location}: give a whole number of 1 to {len(found.values)}."
            )
        numbers = settings.get("numbers", "float16")
        if numbers not in NUMBERS:
            raise UsageError(f"{numbers!r} is no kind of numbers: use one of {', '.join(NUMBERS)}.")
        return Encoded(
            self.name, {"rank": rank, "numbers": numbers}, factor_parts(found, rank, numbers)
        )

    def decoded(self, stored: StoredChange) -> LazyTensor:
        """base + U diag(s) V^T."""
        rows, columns = matrix_shape(stored.shape)
        rank = stored.integer("rank", 1, min(rows, columns))
        dtype = NUMBERS[stored.choice("numbers", tuple(NUMBERS))]
        for part, shape in (("left", (rows, rank)), ("right", (rank, columns))):
            stored.part(part, dtype, shape)
        strengths = stored.array("strengths", DType.FLOAT32, (rank,)).astype(np.float64)

        def factor(part: str, shape: tuple[int, int]) -> NDArray[np.float64]:
            return stored.array(part, dtype, shape).astype(np.float64)

        return on_product(
            stored,
            lambda: factor("left", (rows, rank)) * strengths,
            lambda: factor("right", (rank, columns)),
        )


def factor_parts(found: Spectrum, rank: int, numbers: str) -> dict[str, NDArray[Any]]:
    """The parts that hold so many directions in numbers of a kind."""
    return {
        "left": found.left[:, :rank].astype(numbers),
        "strengths": found.values[:rank].astype(np.float32),
        "right": found.right[:rank].astype(numbers),
    }


def on_product(
    stored: StoredChange,
    left: Callable[[], NDArray[np.float64]],
    right: Callable[[], NDArray[np.float64]],
) -> LazyTensor:
    """base + left @ right, the factors read when the first element is asked for and kept while there is room."""
    columns = matrix_shape(stored.shape)[1]
    step = max(1, _BLOCK // max(columns, 1))

    def change(number: int) -> NDArray[np.float32]:
        first = KEPT.get(stored, 0, lambda: _on_grid(left(), axis=1))
        second = KEPT.get(stored, 1, lambda: _on_grid(right(), axis=0))
        product = first[number * step : (number + 1) * step] @ second
        with np.errstate(over="ignore"):
            flat: NDArray[np.float32] = product.astype(np.float32).reshape(-1)
        return flat

    return on_base(stored, change, step * columns)


def _on_grid(factor: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    """The nearest multiples of a power of two so large that sums of products along `axis` are exact in float64."""
    rank = factor.shape[axis]
    bits = (52 - (rank - 1).bit_length()) // 2
    step = np.ldexp(1.0, int(np.frexp(np.abs(factor).max())[1]) - bits)
    rounded: NDArray[np.float64] = np.rint(factor / step) * step
    return rounded
