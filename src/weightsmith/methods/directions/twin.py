"""Twin-Merging without its router: a shared expert, and what each expert has beyond it in low rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.graph import Site, Value, linear_combination, whole
from weightsmith.methods.averages.linear import normalized
from weightsmith.methods.directions.truncate import Rank, RankTruncation
from weightsmith.methods.parts.registry import Base, method, per_expert, shared
from weightsmith.methods.parts.span import plain_sum
from weightsmith.methods.parts.spectra import ByMatrix, LeadingRules
from weightsmith.methods.parts.task_vectors import lambda_parameter, task_vectors


@method(
    "twin",
    title="Twin-Merging without router",
    paper="Lu et al., NeurIPS 2024, arXiv:2406.15479",
    base=Base.REQUIRED,
    cost="O(N m n min(m, n))",
    generalises=("task_arithmetic", "linear"),
)
@dataclass(frozen=True, slots=True)
class Twin(LeadingRules):
    """Task arithmetic as a shared expert, plus the average of what experts have beyond it, in low rank.

        theta* = theta_0 + shared_lambda sum_i tau_i;   v_i = the r largest singular triplets of theta_i - theta*
        theta = theta* + lambda sum_i w_i v_i / sum_j w_j;   r = rank, or max(1, floor(rank_share min(m, n)))

    In the paper a router gives the w_i for every input; with fixed ones it is a merge, which studies of long-to-short
    reasoning compare as a method of its own (arXiv:2503.20641). One weight of 1, the others 0, and all directions give
    that expert. Tensors that are no matrix are taken whole, as in the authors' code (others: whole), or left at theta*
    (shared). shared_lambda is 0.29 or 0.3 there, rank_share 0.1.
    """

    others: str = shared(
        "whole",
        choices=("whole", "shared"),
        doc="what tensors that are no matrix have beyond the shared expert: all, or nothing",
    )
    embeddings: str = shared(
        "spectral",
        choices=("spectral", "whole", "shared"),
        doc="how embeddings and heads are taken: as matrices, or by one of the rules of `others`",
    )
    weight: tuple[float, ...] = per_expert(1.0, low=0.0, doc="share of each expert's own part")
    rank: int | None = shared(
        None, low=1, optional=True, doc="singular directions of each own part; none: by rank_share"
    )
    rank_share: float = shared(
        0.1, low=0.0, high=1.0, doc="share of the singular directions kept, without rank"
    )
    shared_scale: float = shared(
        0.3, key="shared_lambda", doc="coefficient of the task vectors in the shared expert"
    )
    scale: float = lambda_parameter()

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Add the low-rank parts to the shared expert."""
        base, deltas = task_vectors(base, experts)
        common = plain_sum(deltas, [self.shared_scale] * len(deltas))
        view = self.view(site)
        if view is None and self.rule(site) == "shared":
            return base + common
        own = [delta - common for delta in deltas]
        if view is not None:
            low_rank = RankTruncation(Rank(self.rank, self.rank_share), self.how(site))
            if not all(map(low_rank.is_whole, view.blocks)):
                own = [whole(ByMatrix(low_rank, view, site.name), v, base) for v in own]
        weights = [w * self.scale for w in normalized(self.weight)]
        return base + (common + linear_combination(own, weights))
