"""Low-rank task vectors: keep the leading singular directions of what fine-tuning changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.graph import (
    Site,
    Value,
    floor_of_share,
    linear_combination,
    whole,
    without_gradient,
)
from weightsmith.methods.averages.linear import normalized
from weightsmith.methods.parts.matrices import embeddings_parameter, in_float64, others_parameter
from weightsmith.methods.parts.registry import Base, method, per_expert, shared
from weightsmith.methods.parts.spectra import ByMatrix, Decomposition, LeadingRules
from weightsmith.methods.parts.task_vectors import task_vectors

# Shares of a sum that differ by less are equal.
_ROUNDING = 1e-12


@method(
    "truncate",
    title="Rank-truncated task vectors",
    paper="Eckart and Young, 1936; for task vectors Gargiulo et al., CVPR 2025, arXiv:2412.00081",
    base=Base.REQUIRED,
    presets={"star": {"nuclear_share": 0.4, "rescale": "nuclear"}},
    about_presets={
        "star": "STAR (Lee et al., NAACL 2025, arXiv:2502.10339), whose code keeps 40 % of the nuclear norm"
    },
    cost="O(N m n min(m, n))",
    generalises=("task_arithmetic",),
)
@dataclass(frozen=True, slots=True)
class Truncate(LeadingRules):
    """Average of task vectors, each reduced to its best approximation of low rank.

        tau_i = U S V^T;   tau^_i = the r largest singular triplets;   theta = theta_0 + lambda sum_i w_i tau^_i
        r = rank, or max(1, floor(rank_share min(m, n)))

    With nuclear_share r is the least number of singular values that sum to this share of all of them, and with
    `rescale: nuclear` those kept are multiplied by sum(S) / sum(S_1 .. S_r), so that each matrix keeps its nuclear
    norm: STAR (preset star), whose tasks keep as many directions as their spectra need. Values that are no real
    direction's (see below) are in neither sum.

    Singular vectors of a zero (or rounding) singular value are arbitrary, and carry no weight in tau^_i; rounding is
    what that of the stored weights makes, unless rank_tolerance is given or the task vector is nothing else. Weights
    are divided by their sum with `normalize` (the default). O(m n min(m, n)) time; one whole matrix or stack at a time,
    in float64. Task vectors that are no matrix are summed with the same weights untruncated (others: average) or
    dropped (others: base), and with `others: sum` or `embeddings: sum` added with weights that are not divided.
    A rank that reaches min(m, n) leaves a matrix as it is, unless rank_tolerance is given. Raises NonFiniteError for a
    matrix with NaN or infinities.
    """

    others: str = others_parameter()
    embeddings: str = embeddings_parameter()
    weight: tuple[float, ...] = per_expert(1.0, doc="coefficient of each task vector")
    rank: int | None = shared(
        None, low=1, optional=True, doc="singular directions kept; none: by rank_share"
    )
    rank_share: float = shared(
        0.1, low=0.0, high=1.0, doc="share of the singular directions kept, without rank"
    )
    normalize: bool = shared(True, doc="divide the weights by their sum")
    scale: float = shared(1.0, key="lambda", doc="coefficient of the merged task vector")
    nuclear_share: float | None = shared(
        None,
        low=0.0,
        high=1.0,
        optional=True,
        doc="share of the sum of a matrix's singular values that those kept reach, in place of rank and rank_share",
    )
    rescale: str = shared(
        "none",
        choices=("none", "nuclear"),
        doc="what makes up for dropped directions: nothing, or a factor that keeps the sum of singular values",
    )

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Truncate each task vector and add their average to the base."""
        base, deltas = task_vectors(base, experts)
        view = self.view(site)
        rule = "average" if view is not None else self.rule(site)
        if rule == "base":
            return base
        if view is not None:
            rank = Rank(self.rank, self.rank_share, self.nuclear_share)
            low_rank = RankTruncation(rank, self.how(site), self.rescale == "nuclear")
            if not all(map(low_rank.is_whole, view.blocks)):
                deltas = [whole(ByMatrix(low_rank, view, site.name), d, base) for d in deltas]
        divided = self.normalize and rule == "average"
        weights = normalized(self.weight) if divided else self.weight
        return base + linear_combination(deltas, [w * self.scale for w in weights])


@dataclass(frozen=True, slots=True)
class Rank:
    """How many directions of a matrix (m, n) are kept: `count`, or without it max(1, floor(share min(m, n))).

    With `nuclear_share` it is as many as have that share of the sum of singular values.
    """

    count: int | None = None
    share: float = 1.0
    nuclear_share: float | None = None

    def of(self, matrix: Sequence[int]) -> int:
        """The most that it can be for a matrix of this shape."""
        if self.nuclear_share is not None:
            return min(matrix)
        return self.count or max(1, floor_of_share(self.share, min(matrix)))

    def among(self, linalg: Any, values: Any) -> int:
        """The rank where singular values, falling, are known."""
        if self.nuclear_share is None or not values.shape[0]:
            return int(values.shape[0])
        sums = linalg.cumsum(without_gradient(values), 0)
        return int((sums < self.nuclear_share * sums[-1] * (1.0 - _ROUNDING)).sum()) + 1


@dataclass(frozen=True, slots=True)
class RankTruncation:
    """Best approximation of low rank of a task vector, without what rounding of the weights around the base makes.

    A task vector that is rounding alone keeps as many directions, and one whose directions are all kept stays as it
    is unless a tolerance is given.
    """

    rank: Rank
    how: Decomposition
    keeps_sum: bool = False

    def is_whole(self, matrix: Sequence[int]) -> bool:
        """Whether matrices of this shape stay as they are."""
        if self.rank.nuclear_share is not None:
            return False
        return not self.how.tolerance and self.rank.of(matrix) >= min(matrix)

    def __call__(self, linalg: Any, matrices: list[Any]) -> Any:
        """Matrix of the same shape, in float64."""
        delta, base = matrices
        if self.is_whole(delta.shape):
            return in_float64(linalg, delta)
        rank = self.rank.of(delta.shape)
        sought = min(delta.shape) if self.keeps_sum else rank
        (rounding,) = self.how.roundings(linalg, base, [delta])
        found = self.how.spectrum(linalg, delta, sought, floor=rounding.strength)
        if not found.rank:
            found = self.how.spectrum(linalg, delta, sought)
        kept = found.leading(min(rank, self.rank.among(linalg, found.values)))
        if not self.keeps_sum or not kept.rank:
            return kept.matrix()
        return kept.matrix() * (found.values.sum() / kept.values.sum())
