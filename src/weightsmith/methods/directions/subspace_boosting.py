"""Subspace Boosting: raise the weak singular values of a merged task vector, whose rank has collapsed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.graph import Site, Value, floor_of_share, whole, without_gradient
from weightsmith.methods.directions.iso import weighted_sum
from weightsmith.methods.directions.tsv import strength_parameter
from weightsmith.methods.parts.registry import Base, method, shared
from weightsmith.methods.parts.rounding import noise_of_sum, shares_alike
from weightsmith.methods.parts.span import plain_sum
from weightsmith.methods.parts.spectra import ByMatrix, Decomposition, SpectralRules
from weightsmith.methods.parts.task_vectors import lambda_parameter, task_vectors

# Shares of a sum that differ by less are equal.
_ROUNDING = 1e-12


@method(
    "subspace_boosting",
    title="Subspace Boosting",
    paper="Skorobogat et al., Subspace-Boosted Model Merging, 2025, arXiv:2506.16506",
    base=Base.REQUIRED,
    cost="O(m n min(m, n))",
)
@dataclass(frozen=True, slots=True)
class SubspaceBoosting(SpectralRules):
    """A merged task vector none of whose directions is weaker than one of the strongest.

        tau = sum_i w_i tau_i = U S V^T;   k = the first with S_1 + .. + S_k >= beta (S_1 + .. + S_r)
        theta = theta_0 + lambda U max(S, S_k) V^T

    As a step of `then:` it boosts what any method merged, which is how the paper uses it, after task arithmetic, TIES
    and Consensus. beta is 0.01 there and in the authors' code; up to 1 / r every direction is as strong as the first,
    and 1 changes nothing. With share_of "count", the code's other rule, k is floor(beta min(m, n)) + 1. The change
    grows in length, so that lambda is to be chosen anew. q, k and v that are stored as one are boosted each by itself
    (fused: split). Embeddings, heads and tensors that are no matrix stay as merged, or at the base.

    Directions below rank_tolerance, and those that the rounding of stored weights makes, are not raised, as no expert
    has them; rank_tolerance 0 raises all that are not exactly 0, as the code does. Where singular values below S_k are
    equal nothing depends on their directions. One decomposition, O(m n min(m, n)) time; N + 5 matrices in float64.
    Raises NonFiniteError for a matrix with NaN or infinities.
    """

    others: str = shared(
        "merged",
        choices=("merged", "base"),
        doc="what becomes of tensors that are no matrix: as merged, or the base's",
    )
    embeddings: str = shared(
        "merged",
        choices=("spectral", "merged", "base"),
        doc="how embeddings and heads are taken: as matrices, or by one of the rules of `others`",
    )
    fused: str = shared(
        "split",
        choices=("whole", "split"),
        doc="fused q, k, v and gate, up: as one matrix, or cut into the blocks that lie behind each other",
    )
    weight: tuple[float, ...] = strength_parameter()
    beta: float = shared(
        0.01, low=0.0, high=1.0, doc="share of the singular values that stay as they are, at least"
    )
    share_of: str = shared(
        "sum", choices=("sum", "count"), doc="of what beta is a share: of their sum or their number"
    )
    scale: float = lambda_parameter()

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Boost the weighted sum of the task vectors and add it to the base."""
        base, deltas = task_vectors(base, experts)
        view = self.view(site)
        if view is None:
            kept = self.rule(site) == "base"
            return base if kept else base + plain_sum(deltas, self.weight) * self.scale
        function = Boosted(self.weight, self.beta, self.share_of, self.how(site))
        return base + whole(ByMatrix(function, view, site.name), *deltas, base) * self.scale


@dataclass(frozen=True, slots=True)
class Boosted:
    """Task vectors of one matrix, and its base, which says how they were rounded -> their boosted sum."""

    weights: tuple[float, ...]
    beta: float
    share_of: str
    how: Decomposition

    def __call__(self, linalg: Any, matrices: list[Any]) -> Any:
        """Matrix of the same shape, in float64."""
        *matrices, base = matrices
        cutoff = self.how.cutoff(linalg, matrices[0])
        roundings = self.how.roundings(linalg, base, matrices)
        merged = weighted_sum(linalg, matrices, self.weights)
        floor = noise_of_sum(roundings, self.weights, shares_alike(matrices, roundings))
        found = self.how.spectrum(linalg, merged, None, cutoff, floor).separated()
        if not found.rank:
            return merged
        least = found.values[self.place(linalg, found.values, min(merged.shape))]
        raised = linalg.where(found.values > least, found.values, least)
        # Added to the merge, so that what is not raised keeps every bit.
        return merged + (found.left * (raised - found.values)) @ found.right

    def place(self, linalg: Any, values: Any, count: int) -> int:
        """Where S_k stands among the values of real directions, falling, of which a matrix has at most `count`."""
        if self.share_of == "count":
            return min(floor_of_share(self.beta, count), int(values.shape[0]) - 1)
        sums = linalg.cumsum(without_gradient(values), 0)
        return int((sums < self.beta * sums[-1] * (1.0 - _ROUNDING)).sum())
