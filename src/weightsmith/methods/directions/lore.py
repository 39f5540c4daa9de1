"""LoRE-Merging: a common base and low-rank changes that explain the experts, without their base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.graph import Site, Value, whole
from weightsmith.methods.averages.linear import normalized, weighted_average
from weightsmith.methods.directions.iso import frobenius
from weightsmith.methods.parts.matrices import MatrixRules, in_float64
from weightsmith.methods.parts.registry import Base, method, per_expert, shared
from weightsmith.methods.parts.spectra import ByMatrix, Decomposition, constant, svd_parameter
from weightsmith.methods.parts.task_vectors import lambda_parameter


@method(
    "lore",
    title="LoRE-Merging (low-rank estimation)",
    paper="Liu et al., EMNLP Findings 2025, arXiv:2502.10749",
    base=Base.IGNORED,
    cost="O(steps N m n min(m, n))",
    generalises=("linear",),
)
@dataclass(frozen=True, slots=True)
class Lore:
    """Base and low-rank changes estimated in turn from the experts alone, and the changes averaged.

        delta_i = 0;   steps times:   theta_0 = mean_i (theta_i - delta_i),   delta_i = SVT_mu(theta_i - theta_0)
        theta = theta_0 + lambda sum_i w_i delta_i / sum_i w_i
        SVT_mu(U S V^T) = U max(S - mu, 0) V^T

    Each half of a step is the minimum of sum_i ||theta_0 + delta_i - theta_i||_F^2 / 2 + mu ||delta_i||_* in its own
    unknowns. (The paper prints the nuclear norm squared, of which a threshold that does not move is no solution; its
    algorithm is the one here.) mu is a singular value, not a share of one: above all of them the result is the mean.
    Every matrix by itself, in float64, kernels as (outputs, all others) and stacks of experts one by one; whatever is
    no matrix is averaged with the weights. mu 0.01, 20 steps and lambda 1 are the paper's.
    """

    mu: float = shared(0.01, low=0.0, doc="what every singular value of a change is lowered by")
    steps: int = shared(20, low=1, high=1000, doc="alternations of base and changes")
    weight: tuple[float, ...] = per_expert(1.0, low=0.0, doc="share of each change in the average")
    scale: float = lambda_parameter()
    embeddings: str = shared(
        "spectral",
        choices=("spectral", "average"),
        doc="how embeddings and heads are taken: as matrices, or averaged",
    )
    svd: str = svd_parameter(randomized=False)

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Estimate and average; no base is needed."""
        weights = normalized(self.weight)
        rules = MatrixRules(
            others="average",
            embeddings=self.embeddings,
            stacks="slices",
            kernels="matrix",
            fused="whole",
            orientation="output_first",
            exempt="",
        )
        view = rules.view(site)
        if view is None:
            return weighted_average(experts, weights)
        how = Decomposition(self.svd, stored=site.stored, tensor=site.name)
        function = LowRankEstimate(self.mu, self.steps, tuple(weights), self.scale, how)
        return whole(ByMatrix(function, view, site.name), *experts)


@dataclass(frozen=True, slots=True)
class LowRankEstimate:
    """One matrix of every expert -> the merged one."""

    mu: float
    steps: int
    weights: tuple[float, ...]
    scale: float
    how: Decomposition

    def __call__(self, linalg: Any, matrices: list[Any]) -> Any:
        """Matrix of the same shape, in float64."""
        first = in_float64(linalg, matrices[0])
        # From the first expert, so that what all share is not rounded.
        gaps = [in_float64(linalg, matrix) - first for matrix in matrices]
        changes = [gap * 0.0 for gap in gaps]
        middle = changes[0]
        for _ in range(self.steps):
            middle = sum(g - c for g, c in zip(gaps, changes, strict=True)) / len(gaps)
            changes = [self._shrunk(linalg, gap - middle) for gap in gaps]
        merged = sum(w * change for w, change in zip(self.weights, changes, strict=True))
        return first + (middle + self.scale * merged)

    def _shrunk(self, linalg: Any, matrix: Any) -> Any:
        """SVT_mu."""
        bound = constant(frobenius(linalg, matrix))
        if bound <= self.mu or bound == 0.0:
            return matrix * 0.0
        # What lies below mu vanishes, so accuracy is needed down to there only.
        tolerance = max(self.how.cutoff(linalg, matrix), self.mu / bound)
        found = self.how.spectrum(linalg, matrix, tolerance=tolerance, floor=self.mu)
        if not found.rank:
            return matrix * 0.0
        # U (S - mu) V^T, in terms that have gradients also where values are equal.
        return found.matrix() - self.mu * found.polar()
