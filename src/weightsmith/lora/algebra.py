"""Sums, norms and truncations of changes of low rank in factored form: no change is ever held dense.

With B of m rows and A of n columns, R columns and rows in all, everything here costs O((m + n) R^2 + R^3) in float64:

    B = Q_b R_b,  A^T = Q_a R_a,  R_b R_a^T = U S V^T      =>      s B A = (Q_b U) (s S) (Q_a V)^T

No result depends on the gauge, that is on which of the products (B G) (G^-1 A) a change is written as.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from weightsmith.deltas import LowRankChange, Matrix
from weightsmith.errors import NonFiniteError, UsageError
from weightsmith.graph import Spectrum, exact

# Singular values below this many roundings of the largest, for each row or column, are rounding.
_ROUNDING = float(np.finfo(np.float64).eps)


def leading(found: Spectrum, rank: int) -> LowRankChange:
    """The best approximation of that rank, balanced: B = U sqrt(S), A = sqrt(S) V^T; of rank 1 at least.

    A change without any singular value gives zeros of rank 1, which every dialect can write.
    """
    if not found.rank:
        return zeros(found.left.shape[0], found.right.shape[1])
    kept = found.leading(max(rank, 1))
    root = np.sqrt(kept.values)
    return LowRankChange(kept.left * root, root[:, None] * kept.right)


def lost(values: Matrix, rank: int) -> float:
    """||discarded|| / ||whole|| in Frobenius norm when `rank` singular values are kept; 0 for a change of zero."""
    if not len(values):
        return 0.0
    relative = values / values[0]
    return float(np.sqrt(np.square(relative[rank:]).sum() / np.square(relative).sum()))


def zeros(rows: int, columns: int) -> LowRankChange:
    """The change that changes nothing, of rank 1."""
    return LowRankChange(np.zeros((rows, 1)), np.zeros((1, columns)))


def concatenated(changes: Sequence[tuple[float, LowRankChange]]) -> LowRankChange:
    """sum_i w_i s_i B_i A_i, exactly: factors beside and below each other, of rank sum_i r_i, with scale 1.

    Weights may be negative; they go to the left factors. Raises UsageError for no changes or for different shapes.
    """
    if not changes:
        raise UsageError("A sum of changes needs at least one change.")
    shapes = {change.shape for _, change in changes}
    if len(shapes) > 1:
        listed = ", ".join(f"{rows} x {columns}" for rows, columns in sorted(shapes))
        raise UsageError(
            f"Changes of the shapes {listed} cannot be added: they are of other bases."
        )
    left = [change.left * (weight * change.scale) for weight, change in changes]
    return LowRankChange(np.concatenate(left, 1), np.concatenate([c.right for _, c in changes], 0))


def spectrum(change: LowRankChange) -> Spectrum:
    """The singular value decomposition of a change, up to its numerical rank, from two QRs and one small SVD.

    The largest element of each left singular vector is positive (the first of equal ones), so the result is the same
    whatever the gauge was, as far as the singular values are distinct. Raises NonFiniteError for NaN or infinities.
    """
    require_finite(change)
    b, a = _even(change)
    (left, left_core), (right, right_core) = np.linalg.qr(b), np.linalg.qr(a.T)
    # The size of the cores is taken out, so that squares neither vanish nor overflow.
    sizes = [float(abs(core).max(initial=0.0)) for core in (left_core, right_core)]
    if 0.0 in sizes or change.scale == 0.0:
        return _empty(change.shape)
    left_core, right_core = left_core / sizes[0], right_core / sizes[1]
    core = exact(np, left_core @ right_core.T)
    whole = Spectrum(left @ core.left, core.values, core.right @ right.T)
    bound = float(np.linalg.norm(left_core) * np.linalg.norm(right_core))
    return signed(whole, scale=change.scale * sizes[0] * sizes[1], size=bound)


def _even(change: LowRankChange) -> tuple[Matrix, Matrix]:
    """Left and right factors with each column of the one as large as the row of the other that it goes with."""
    left, right = (
        abs(change.left).max(axis=0, initial=0.0),
        abs(change.right).max(axis=1, initial=0.0),
    )
    there = (left > 0.0) & (right > 0.0)
    ratio = np.sqrt(right[there]) / np.sqrt(left[there])
    return change.left[:, there] * ratio, change.right[there] / ratio[:, None]


def dense_spectrum(matrix: Matrix) -> Spectrum:
    """The singular value decomposition of a dense change, up to its numerical rank; signs as those of `spectrum`."""
    if not np.isfinite(matrix).all():
        raise NonFiniteError("A change holds NaN or infinities: its model is damaged.")
    if 0 in matrix.shape or not matrix.any():
        return _empty((matrix.shape[0], matrix.shape[1]))
    return signed(exact(np, matrix))


def signed(found: Spectrum, scale: float = 1.0, size: float = 0.0) -> Spectrum:
    """A decomposition times `scale` without the directions that are rounding, the signs of its vectors fixed.

    Rounding is measured against the largest singular value, and against `size` where the decomposed numbers came out
    of larger ones that cancel.
    """
    count = max(found.left.shape[0], found.right.shape[1])
    values = found.values
    limit = max(float(values[0]), size) * _ROUNDING * count if len(values) else 0.0
    rank = int((values > limit).sum())
    kept = found.leading(rank)
    largest = kept.left[abs(kept.left).argmax(axis=0), np.arange(rank)]
    sign = np.where(largest < 0.0, -1.0, 1.0)
    turned = (sign if scale > 0.0 else -sign)[:, None]
    return Spectrum(kept.left * sign, kept.values * abs(scale), kept.right * turned)


def _empty(shape: tuple[int, int]) -> Spectrum:
    return Spectrum(np.zeros((shape[0], 0)), np.zeros(0), np.zeros((0, shape[1])))


def kept_rank(
    values: Matrix,
    *,
    rank: int | None = None,
    energy: float | None = None,
    error: float | None = None,
) -> int:
    """How many of the falling singular values are kept: at least 1, at most all.

        rank     that many at most
        energy   the fewest that hold the share `energy` of the sum of squares
        error    the fewest whose rest is at most `error` of the whole, in Frobenius norm

    With several of them each must hold, but that `rank` is never exceeded; with none all are kept. Raises UsageError
    for a rank below 1, an energy outside (0, 1] and an error outside [0, 1).
    """
    if rank is not None and rank < 1:
        raise UsageError(f"A rank of {rank} has no meaning: give 1 or more.")
    if energy is not None and not 0.0 < energy <= 1.0:
        raise UsageError(f"An energy of {energy:g} is no share: give a number above 0 and up to 1.")
    if error is not None and not 0.0 <= error < 1.0:
        raise UsageError(f"A relative error of {error:g} has no meaning: give 0 or more, below 1.")
    count = len(values)
    needed = count
    if count and (energy is not None or error is not None):
        squares = np.square(values / values[0])
        # Summed from the smallest on, so that what a high energy leaves over is not rounded away.
        rest = np.append(np.cumsum(squares[::-1])[::-1], 0.0)
        share = max(min(1.0 - (energy or 0.0), 1.0 if error is None else error * error), 0.0)
        needed = int(np.argmax(rest <= rest[0] * share))
    return max(1, needed if rank is None else min(needed, rank))


def truncated(
    change: LowRankChange,
    *,
    rank: int | None = None,
    energy: float | None = None,
    error: float | None = None,
) -> tuple[LowRankChange, float]:
    """The best approximation of lower rank, and the share of the norm that it lost (see `kept_rank`).

    Balanced: B = U sqrt(S) and A = sqrt(S) V^T, scale 1. Without any bound it is the same change in that gauge.
    """
    found = spectrum(change)
    kept = kept_rank(found.values, rank=rank, energy=energy, error=error)
    return leading(found, kept), lost(found.values, kept)


def inner(first: LowRankChange, second: LowRankChange) -> float:
    """sum_ij X_ij Y_ij of two changes of one shape, from R x R products."""
    products = (first.left.T @ second.left) * (first.right @ second.right.T)
    return float(products.sum()) * first.scale * second.scale


def norm(change: LowRankChange) -> float:
    """The Frobenius norm, from the cores of two QRs: sound where factors nearly cancel."""
    return math.hypot(*spectrum(change).values)


def cosine(first: LowRankChange, second: LowRankChange) -> float:
    """The cosine between two changes as vectors, in [-1, 1]; 0 where one of them is zero."""
    sizes = norm(first), norm(second)
    if 0.0 in sizes:
        return 0.0
    a = LowRankChange(first.left / sizes[0], first.right, first.scale)
    b = LowRankChange(second.left / sizes[1], second.right, second.scale)
    return max(-1.0, min(1.0, inner(a, b)))


def require_finite(change: LowRankChange) -> None:
    """Raise NonFiniteError where a factor holds NaN or infinities."""
    if not (np.isfinite(change.left).all() and np.isfinite(change.right).all()):
        raise NonFiniteError("A low-rank change holds NaN or infinities: its adapter is damaged.")
