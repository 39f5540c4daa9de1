"""The change of one tensor as factors of a stored type: as few as a bound allows, their error measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from weightsmith.deltas import Change, LowRankChange, Matrix
from weightsmith.errors import CompatibilityError, NonFiniteError
from weightsmith.lora.algebra import kept_rank
from weightsmith.lora.bounds import RankBound
from weightsmith.lora.decomposing import ChangeDirections, decompositions, residual
from weightsmith.tensors import WORDS, DType, narrow, roundoff, shown, widen


def share_of(bound: RankBound) -> float | None:
    """What may be lost of ||change||^2; None where the rank alone counts, 0 where everything must be kept."""
    if bound.energy is None and bound.error is None:
        return None
    by_energy = 1.0 if bound.energy is None else 1.0 - bound.energy
    return min(by_energy, 1.0 if bound.error is None else bound.error**2)


@dataclass(frozen=True, slots=True, eq=False)
class FactorFit:
    """Factors rounded to their stored type, the singular values that were found, and ||change - factors||_F."""

    change: LowRankChange
    values: Matrix
    error: float


def fit(change: Change, squares: float, bound: RankBound, dtype: DType, name: str) -> FactorFit:
    """The factors of fewest directions that keep to `bound`, `squares` being ||change||_F^2, above 0.

    The error is that of the rounded factors, of one more pass over the tensors; where it misses the bound by rounding,
    more directions are taken. Raises CompatibilityError where rounding alone is more than the bound allows, and
    NonFiniteError for factors beyond the range of `dtype`.
    """
    share = share_of(bound)
    sketch_rank = bound.rank if share is None else None
    found = (
        _fit_within(change, known, squares, bound, dtype, name)
        for known in decompositions(change, name, sketch_rank)
    )
    return next(fitted for fitted in found if fitted is not None)


def _fit_within(
    change: Change,
    known: ChangeDirections,
    squares: float,
    bound: RankBound,
    dtype: DType,
    name: str,
) -> FactorFit | None:
    """The fit by the directions that are known; None where they are too few."""
    share, available = share_of(bound), len(known.values)
    if bound.rank is not None:
        available = min(available, bound.rank)
    count = available if share is None else _needed(known, squares, share)
    if count > available and not known.is_whole and available != bound.rank:
        return None
    while True:
        count = min(count, available)
        factors = rounded(known.leading(count), dtype)
        error = residual(change, factors)
        # Nothing can be asked of the rounding where the rank alone counts, and where all directions are taken.
        if not share or error**2 <= share * squares or count == bound.rank:
            return FactorFit(factors, known.values, error)
        left_out = squares - float(np.square(known.values[:count]).sum())
        if (known.is_whole and count == available) or error**2 - left_out > share * squares:
            raise CompatibilityError(
                f"The change of {shown(name)} cannot be held in {dtype} within {math.sqrt(share):.2g} of its norm, "
                f"because rounding alone costs about {roundoff(dtype):.1g}; store the factors in a wider type, or "
                "allow more."
            )
        if count == available:
            return None
        count += max(1, count // 8)


def _needed(known: ChangeDirections, squares: float, share: float) -> int:
    """The fewest directions that leave at most `share` of the squares; one more than are known where these do not."""
    if known.is_whole:
        return kept_rank(known.values, energy=1.0 - share)
    rest = squares - np.cumsum(np.square(known.values))
    enough = np.flatnonzero(rest <= share * squares)
    return int(enough[0]) + 1 if len(enough) else len(known.values) + 1


def rounded(change: LowRankChange, dtype: DType) -> LowRankChange:
    """The same factors with every number rounded to `dtype`; raises NonFiniteError beyond its range."""
    return LowRankChange(nearest(change.left, dtype), nearest(change.right, dtype), change.scale)


def nearest(values: Matrix, dtype: DType) -> Matrix:
    """Numbers rounded once to `dtype`, in float64 again; raises NonFiniteError where one is too large for it."""
    words = narrow(values, dtype).view(WORDS[dtype.itemsize])
    found: Matrix = widen(words, dtype).astype(np.float64)
    if not np.isfinite(found).all():
        raise NonFiniteError(
            f"A number of magnitude {float(abs(values).max()):g} has no place in {dtype}; take a wider type."
        )
    return found
