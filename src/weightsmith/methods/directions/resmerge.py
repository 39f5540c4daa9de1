"""ResMerge: what experts of reinforcement learning share beyond their strongest direction, and a little of that."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.graph import Site, Value, whole
from weightsmith.methods.directions.iso import frobenius, length_of
from weightsmith.methods.directions.tsv import strength_parameter
from weightsmith.methods.parts.gram import total
from weightsmith.methods.parts.matrices import embeddings_parameter, in_float64
from weightsmith.methods.parts.named_roles import has_role
from weightsmith.methods.parts.registry import Base, method, shared
from weightsmith.methods.parts.rounding import arithmetic_of
from weightsmith.methods.parts.spectra import ByMatrix, Decomposition, LeadingRules, constant
from weightsmith.methods.parts.task_vectors import lambda_parameter, task_vectors

# By how much the coherence of directions at right angles may be above its value.
_ROUNDING = 1e-12


@method(
    "resmerge",
    title="ResMerge (residual consensus)",
    paper="ResMerge, 2026, arXiv:2606.02252",
    base=Base.REQUIRED,
    cost="O(N m n min(m, n))",
)
@dataclass(frozen=True, slots=True)
class ResMerge(LeadingRules):
    """The common direction of what task vectors are without their heads, plus a share of the heads as they agree.

        w_i tau_i = h_i + e_i,   h_i = its k largest singular triplets;   q_i = e_i / ||e_i||
        c = ||sum q_i|| / N,   s = mean over i < j of <q_i, q_j>,   score = ((s + 1) / 2 + (c + 1) / 2) / 2
        b = c^beta mean_i ||e_i|| (sum q_i) / ||sum q_i||,   beta = beta_max - (beta_max - beta_min) score
        T = b + budget a ||b|| (sum h_i) / ||sum h_i||,   a = mean over i < j of max(0, cos(h_i, h_j))
        theta = theta_0 + lambda T

    Where c is no more than 1 / sqrt(N), that of directions at right angles, b is the mean of the e_i. In reinforcement
    learning, says the paper, the strongest direction is least alike among experts and what is left is most. The score
    is that of attention and MLPs; it is 0 in other matrices (scored). k 1, beta from 0.7 to 1 and budget 0.2 are those
    of the authors' code; one expert has s = a = 1. Embeddings, heads and tensors that are no matrix are averaged. An
    e_i that is rounding alone counts in N, with q_i = 0. A task vector of rank k has nothing else, and is lost but for
    others' b; experts of supervised fine-tuning are better merged otherwise. Results jump at c = 1 / sqrt(N). O(N m n
    min(m, n)) time; 2 N + 5 matrices in float64. Raises NonFiniteError for a matrix with NaN or infinities.
    """

    embeddings: str = embeddings_parameter("average")
    weight: tuple[float, ...] = strength_parameter()
    rank: int = shared(1, low=0, key="k", doc="singular directions of each head")
    beta_min: float = shared(0.7, low=0.0, doc="exponent of the coherence where experts are alike")
    beta_max: float = shared(1.0, low=0.0, doc="exponent of the coherence where they are not")
    budget: float = shared(
        0.2, low=0.0, doc="length of the heads' share over that of b, where heads are alike"
    )
    scored: str = shared(
        "attention mlp expert",
        doc="roles, separated by spaces, of tensors whose exponent goes by the score",
    )
    scale: float = lambda_parameter()

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Add the consensus to the base."""
        base, deltas = task_vectors(base, experts)
        view = self.view(site)
        if view is None:
            merged = self.without_matrix(deltas, self.weight, site)
            return base if merged is None else base + merged * self.scale
        lowest = self.beta_min if has_role(site, self.scored, "scored") else self.beta_max
        function = ResidualConsensus(
            self.weight, self.rank, (lowest, self.beta_max), self.budget, self.how(site)
        )
        return base + whole(ByMatrix(function, view, site.name), *deltas, base) * self.scale


@dataclass(frozen=True, slots=True)
class ResidualConsensus:
    """Task vectors of one matrix, and the base, which says how they were rounded -> T."""

    weights: tuple[float, ...]
    rank: int
    betas: tuple[float, float]
    budget: float
    how: Decomposition

    def __call__(self, linalg: Any, matrices: list[Any]) -> Any:
        """Matrix of the same shape, in float64."""
        *matrices, base = matrices
        heads, residuals = [], []
        roundings = self.how.roundings(linalg, base, matrices)
        for matrix, weight, rounding in zip(matrices, self.weights, roundings, strict=True):
            task = in_float64(linalg, matrix) * weight
            found = self.how.spectrum(linalg, matrix, self.rank, floor=rounding.strength)
            head = found.matrix() * weight
            heads.append(head)
            residuals.append(task - head)
        lengths = [frobenius(linalg, h + r) for h, r in zip(heads, residuals, strict=True)]
        backbone = self._backbone(linalg, residuals, lengths)
        if not frobenius(linalg, backbone):
            return backbone
        return backbone + self._head(linalg, heads, length_of(linalg, backbone))

    def _backbone(self, linalg: Any, residuals: Sequence[Any], lengths: Sequence[float]) -> Any:
        count = len(residuals)
        real = [
            residual
            for residual, length in zip(residuals, lengths, strict=True)
            if frobenius(linalg, residual) > arithmetic_of(residual.shape, length)
        ]
        if not real:
            return residuals[0] * 0.0
        sizes = [length_of(linalg, residual) for residual in real]
        summed = total([r / size for r, size in zip(real, sizes, strict=True)])
        length = length_of(linalg, summed)
        coherence = length / count
        if not constant(coherence) > (1.0 + _ROUNDING) / math.sqrt(count):
            return total(real) / count
        # sum_{i != j} <q_i, q_j> is what the squared length of the sum has beside the squares.
        alike = (length * length - len(real)) / (count * (count - 1))
        score = ((alike + 1.0) / 2.0 + (coherence + 1.0) / 2.0) / 2.0
        low, high = self.betas
        return summed * (coherence ** (high - (high - low) * score) * total(sizes) / count / length)

    def _head(self, linalg: Any, heads: Sequence[Any], length: Any) -> Any:
        real = [head for head in heads if frobenius(linalg, head)]
        summed = total(heads)
        size = length_of(linalg, summed)
        scale = max(frobenius(linalg, head) for head in heads)
        if not real or not constant(size) > _ROUNDING * scale:
            return summed * 0.0
        units = [head / length_of(linalg, head) for head in real]
        cosines = [(units[i] * units[j]).sum() for j in range(len(units)) for i in range(j)]
        agreement: Any = 1.0
        if cosines:
            agreement = total([linalg.where(c > 0.0, c, c * 0.0) for c in cosines]) / len(cosines)
        return summed * (self.budget * agreement * length / size)
