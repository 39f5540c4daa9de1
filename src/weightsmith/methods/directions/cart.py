"""CART: low-rank parts of the experts around their average, which is the centre of what they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.graph import Site, Value, linear_combination, whole
from weightsmith.methods.averages.linear import weighted_average
from weightsmith.methods.directions.truncate import Rank, RankTruncation
from weightsmith.methods.directions.tsv import strength_parameter
from weightsmith.methods.parts.registry import Base, method, shared
from weightsmith.methods.parts.spectra import ByMatrix, LeadingRules
from weightsmith.methods.parts.task_vectors import lambda_parameter, task_vectors


@method(
    "cart",
    title="CART (centred low-rank arithmetic)",
    paper="Choi et al., Revisiting Weight Averaging for Model Merging, 2024, arXiv:2412.12153",
    base=Base.REQUIRED,
    presets={"adarank": {"rank_share": 0.16, "lambda": 2.3}},
    about_presets={
        "adarank": "CART as AdaRank's code sets it for eight tasks of ViT-B/32 (ICLR 2026, arXiv:2503.22178)"
    },
    cost="O(N m n min(m, n))",
    generalises=("soup",),
)
@dataclass(frozen=True, slots=True)
class Cart(LeadingRules):
    """The experts' average plus the leading singular directions of what each has beyond it.

        D = (1/N) sum_i tau_i;   v_i = the r largest singular triplets of tau_i - D
        theta = theta_0 + D + lambda sum_i w_i v_i,   r = rank, or max(1, floor(rank_share min(m, n)))

    The differences from the average sum to 0, and so do the v_i of full rank: truncation alone leaves something to add,
    which is less in conflict than leading directions of task vectors. Tensors that are no matrix are averaged
    (others). The base only says what an average is measured from, and what rounding made. lambda is to be chosen on
    validation data; rank_share is that of the authors' later code (preset adarank, with its lambda for eight tasks).
    A port that truncates the mean of the differences, which is 0, is plain averaging. Rounding and its directions are
    as in `truncate`, O(N m n min(m, n)) time. Raises NonFiniteError for a matrix with NaN or infinities.
    """

    weight: tuple[float, ...] = strength_parameter()
    rank: int | None = shared(
        None, low=1, optional=True, doc="singular directions of each own part; none: by rank_share"
    )
    rank_share: float = shared(
        0.16, low=0.0, high=1.0, doc="share of the singular directions kept, without rank"
    )
    scale: float = lambda_parameter()

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Add the average and the low-rank parts to the base."""
        base, deltas = task_vectors(base, experts)
        view = self.view(site)
        if view is None:
            merged = self.without_matrix(deltas, [1.0] * len(deltas), site)
            return base if merged is None else base + merged
        mean = weighted_average(deltas, [1.0 / len(deltas)] * len(deltas))
        own = [delta - mean for delta in deltas]
        low_rank = RankTruncation(Rank(self.rank, self.rank_share), self.how(site))
        if not all(map(low_rank.is_whole, view.blocks)):
            own = [whole(ByMatrix(low_rank, view, site.name), v, base) for v in own]
        return base + (mean + linear_combination(own, [w * self.scale for w in self.weight]))
