"""`refined`: exact like `lossless`, against a base that low-rank factors have brought close to the target first.

A fine-tune made by merging an adapter is round(base + B A). The leading singular directions of target - base give B A
back with less error than one rounding, so that base + U diag(s) V^T is the target but for some last bits, and little
remains to be stored. Whether that may pay is seen on a sample of rows and columns; whether it does, by trying.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from weightsmith.deltas.codecs.codec import Encoded, StoredChange, part_in_memory
from weightsmith.deltas.codecs.delta_codec import Change, Delta
from weightsmith.deltas.codecs.directions import sketched_directions
from weightsmith.deltas.codecs.held import fitted
from weightsmith.deltas.codecs.lossless import (
    LOSSLESS,
    Known,
    difference_parts,
    encode_lossless,
    with_difference,
)
from weightsmith.deltas.codecs.low_rank_codec import LowRankCodec, factor_parts
from weightsmith.tensors import LazyTensor

REFINED = "refined"
# The sample: so many rows, and about so many elements of each; ranks up to a quarter of the rows are looked for.
_ROWS, _COLUMNS, _MOST = 128, 512, 32
# The share of the lossless bytes that factors must promise to take away.
_WORTHWHILE = 0.1
_SMALLEST = 1 << 12


def encode_exactly(base: LazyTensor | None, target: LazyTensor, threads: int = 1) -> Encoded:
    """The target so that every bit comes back: `same`, `whole` without a base, or the shorter of `lossless`, `refined`.

    Both are read once, a block of 2^20 elements per thread at a time, and seven times more where the change seems to be
    of low rank. The bytes do not depend on `threads`.
    """
    plain = encode_lossless(base, target, threads)
    if base is None or plain.codec != LOSSLESS or not _is_matrix(base, target):
        return plain
    delta = Delta(base, target)
    numbers = "float16" if target.dtype.itemsize == 2 else "float32"
    rank = _promising_rank(delta, 8 * plain.nbytes / target.numel, 8 * np.dtype(numbers).itemsize)
    if not rank:
        return plain
    found = sketched_directions(functools.partial(_finite_rows, delta), delta.matrix, rank)
    parts = factor_parts(found, rank, numbers)
    parameters = {"rank": rank, "numbers": numbers}
    lazy = {part: part_in_memory(part, array) for part, array in parts.items()}
    stored = StoredChange(REFINED, parameters, lazy, base, target.name, target.dtype, target.shape)
    difference = difference_parts(_prediction(stored), target, threads)
    refined = Encoded(REFINED, parameters, {**parts, **difference})
    return min(plain, refined, key=lambda encoded: encoded.nbytes)


def decode_refined(stored: StoredChange) -> LazyTensor:
    """The base with the factors' product and then the differences added. Raises CheckpointError if parts do not fit."""
    return with_difference(stored, _prediction(stored))


def _prediction(stored: StoredChange) -> Known:
    """What the factors make of the base; NaN among it may have any payload."""
    return Known(LowRankCodec().decoded(stored), is_computed=True)


def _is_matrix(base: LazyTensor, target: LazyTensor) -> bool:
    has_floats = base.dtype.is_float and target.dtype.is_float and not target.dtype.is_fp8
    fits = fitted(base, target.name, target.shape) is not None
    return has_floats and fits and len(target.shape) > 1 and target.numel >= _SMALLEST


def _finite_rows(delta: Delta, first: int, last: int) -> Change:
    """Rows of the change, with 0 for what is not finite: that is left to the difference."""
    found = delta.rows(first, last)
    return np.where(np.isfinite(found), found, np.float32(0))


def _promising_rank(delta: Delta, bits: float, number_bits: int) -> int:
    """The rank that should save most of the `bits` per element, 0 if no rank saves a tenth of them.

    Factors that leave the share q of the squared change save log2(1 / q) / 2 bits per element. q is taken from a
    sample, where directions of noise are fewer: its tail counts n / (n - k) fold.
    """
    rows, columns = delta.matrix
    places = np.unique(np.linspace(0, rows - 1, _ROWS).astype(np.int64))
    stride = max(1, columns // _COLUMNS)
    sample = np.concatenate([_finite_rows(delta, int(i), int(i) + 1)[:, ::stride] for i in places])
    if not sample.any():
        return 0
    wide = sample.astype(np.float64)
    gram = wide @ wide.T if len(places) <= wide.shape[1] else wide.T @ wide
    energies = np.linalg.eigvalsh(gram)[::-1].clip(min=0.0)
    best, rank = _WORTHWHILE * bits, 0
    for k in range(1, min(_MOST, len(energies) // 2) + 1):
        left = energies[k:].sum() / energies.sum() * len(energies) / (len(energies) - k)
        saved = min(bits, -math.log2(max(left, 1e-14)) / 2)
        net = saved - number_bits * k * (rows + columns) / delta.numel
        if net > best:
            best, rank = net, k
    return rank
