"""A decoded change on top of its base: added in float32 and rounded once to the stored dtype."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.deltas.codecs.codec import StoredChange
from weightsmith.deltas.codecs.held import BLOCK, BlockTensor, fitted
from weightsmith.deltas.decoded_tensors import DecodedTensor
from weightsmith.errors import NonFiniteError
from weightsmith.graph import Value, source
from weightsmith.tensors import DType, LazyTensor


def fitted_base(stored: StoredChange) -> LazyTensor:
    """The base with the target's number of rows. Raises CheckpointError if it is missing or does not fit."""
    found = None if stored.base is None else fitted(stored.base, stored.name, stored.shape)
    if found is None or not found.dtype.is_float or not stored.dtype.is_float:
        raise stored.unfit()
    return found


def on_base(
    stored: StoredChange, change: Callable[[int], NDArray[Any]], block: int = BLOCK
) -> LazyTensor:
    """base + change, `change(i)` being block i of it in float32.

    Reading raises NonFiniteError where the change is not finite.
    """

    def finite(number: int) -> NDArray[Any]:
        with np.errstate(over="ignore", invalid="ignore"):
            found = change(number)
        if not np.isfinite(found).all():
            raise NonFiniteError(
                f"{stored.location}: the change that is decoded overflows float32 in block {number}; it is damaged, "
                "fetch it or make it again."
            )
        return found

    decoded = BlockTensor(
        stored.name, DType.FLOAT32, stored.shape, tuple(stored.parts.values()), finite, block
    )
    return with_graph(stored, (decoded,), lambda: source(0) + source(1))


def with_graph(
    stored: StoredChange,
    sources: tuple[LazyTensor, ...],
    graph: Callable[..., Value],
    constants: tuple[LazyTensor, ...] = (),
) -> LazyTensor:
    """What the graph makes of the base (source 0) and `sources`, rounded to the stored dtype."""
    base = fitted_base(stored)
    return DecodedTensor(
        stored.name, stored.dtype, stored.shape, (base, *sources), graph, constants
    )
