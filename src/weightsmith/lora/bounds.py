"""How far changes are cut, and cutting them: from their spectrum, or a sketch of a dense one where that is enough."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from weightsmith.deltas import Full, LowRankChange, Matrix
from weightsmith.errors import NonFiniteError
from weightsmith.graph import Spectrum
from weightsmith.lora.algebra import kept_rank, leading, lost, zeros
from weightsmith.lora.decomposing import decompositions
from weightsmith.tensors import shown


@dataclass(frozen=True, slots=True)
class RankBound:
    """How far changes are cut; see `algebra.kept_rank`. `rank` is a limit: smaller matrices have less."""

    rank: int | None = None
    energy: float | None = None
    error: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether nothing is asked for."""
        return self.rank is None and self.energy is None and self.error is None

    def kept(self, values: Matrix) -> int:
        """How many of the singular values are kept."""
        return kept_rank(values, rank=self.rank, energy=self.energy, error=self.error)


@dataclass(frozen=True, slots=True, eq=False)
class TruncatedChange:
    """A change after its cut, the share of the norm that the cut took, and the norm before it."""

    change: LowRankChange
    lost: float
    size: float


def truncate_spectrum(found: Spectrum, bound: RankBound) -> TruncatedChange:
    """The leading directions of a decomposed change."""
    kept = bound.kept(found.values)
    return TruncatedChange(
        leading(found, kept), lost(found.values, kept), math.hypot(*found.values)
    )


def truncate_matrix(matrix: Matrix, bound: RankBound, key: str) -> TruncatedChange:
    """The leading directions of a dense change.

    Where a rank alone is asked for, and it is small for a large matrix, only these directions are sought, by a sketch
    that `key` selects: O(m n rank) instead of O(m n min(m, n)). What they lose is measured, not estimated. Raises
    NonFiniteError for NaN or infinities.
    """
    if not np.isfinite(matrix).all():
        raise NonFiniteError(f"The change of {shown(key)} holds NaN or infinities.")
    bound.kept(np.ones(1))
    size = float(abs(matrix).max(initial=0.0))
    if size == 0.0:
        return TruncatedChange(zeros(*matrix.shape), 0.0, 0.0)
    sole = bound.rank if bound.energy is None and bound.error is None else min(matrix.shape)
    known = next(decompositions(Full(matrix / size), key, sole))
    kept = bound.kept(known.values)
    change = known.leading(kept)
    norm = float(np.linalg.norm(matrix / size))
    share = lost(known.values, kept) if known.is_whole else _left_over(known.values[:kept], norm)
    root = math.sqrt(size)
    return TruncatedChange(
        LowRankChange(change.left * root, change.right * root), share, norm * size
    )


def _left_over(values: Matrix, norm: float) -> float:
    """||D - B|| / ||D|| for a projection B of D with these singular values."""
    return math.sqrt(max(0.0, 1.0 - float(np.square(values / norm).sum())))
