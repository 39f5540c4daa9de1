"""Task singular vectors: merge the leading singular directions of every task after removing their interference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from weightsmith.graph import Site, Spectrum, Value, floor_of_share, whole
from weightsmith.methods.directions.truncate import Rank, RankTruncation
from weightsmith.methods.parts.matrices import in_float64
from weightsmith.methods.parts.named_roles import TEXT_PROJECTION
from weightsmith.methods.parts.registry import Base, method, per_expert, shared
from weightsmith.methods.parts.spectra import (
    ByMatrix,
    Decomposition,
    LeadingRules,
    blockwise,
    constant,
)
from weightsmith.methods.parts.task_vectors import lambda_parameter, task_vectors

_PAPER = "Gargiulo et al., CVPR 2025, arXiv:2412.00081"


def strength_parameter() -> Any:
    """w_i of methods whose task vectors are scaled before they are decomposed."""
    return per_expert(1.0, doc="coefficient of each task vector")


@method(
    "tsv_m",
    title="TSV-Merge (task singular vectors)",
    paper=_PAPER,
    base=Base.REQUIRED,
    presets={
        "reference": {"smallest_rank": 0, "exempt": TEXT_PROJECTION},
        "lossless": {"rank_share": 1.0, "exempt": TEXT_PROJECTION},
    },
    cost="O(N m n min(m, n))",
)
@dataclass(frozen=True, slots=True)
class TsvMerge(LeadingRules):
    """Sum of the leading singular directions of all tasks, made orthogonal to each other.

        w_i tau_i = U_i S_i V_i^T, of which k = max(smallest_rank, floor(min(m, n) rank_share)) triplets are kept
        U = [U_1 .. U_N],  V = [V_1 .. V_N],  S = diag(S_1 .. S_N)
        theta = theta_0 + lambda polar(U) S polar(V)^T,   polar(A) = A (A^T A)^(-1/2) over the directions A has

    rank_share is 1/N unless given, so that all tasks together have the rank of the matrix. Task vectors that are no
    matrix are averaged (others). A tensor with fewer rows or columns than tasks keeps one direction of each; the
    authors' code drops it (preset reference: smallest_rank 0), and keeps all triplets in its lossless form (preset
    lossless). Both presets average CLIP's text projection as that code does, whose fine-tunes leave it alone (exempt).
    Whitening by eigenvectors of U^T U, its other form, is the same formula. Equal task vectors give their truncation,
    since directions that U lacks are not invented. Unless rank_tolerance is given, nor are those that the rounding of
    stored weights makes, of a task or between two; a task vector without any other is added as it is. O(N m n min(m,
    n)) time; N + 3 matrices in float64.
    """

    weight: tuple[float, ...] = strength_parameter()
    rank_share: float | None = shared(
        None,
        low=0.0,
        high=1.0,
        optional=True,
        doc="share of the singular directions kept of each task; none: 1/N",
    )
    smallest_rank: int = shared(1, low=0, doc="directions kept of each task at the least")
    scale: float = lambda_parameter()

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Add the decorrelated singular directions to the base."""
        base, deltas = task_vectors(base, experts)
        view = self.view(site)
        if view is None:
            merged = self.without_matrix(deltas, self.weight, site)
            return base if merged is None else base + merged * self.scale
        function = Decorrelated(self.weight, self.rank_share, self.smallest_rank, self.how(site))
        return base + whole(ByMatrix(function, view, site.name), *deltas, base) * self.scale


@dataclass(frozen=True, slots=True)
class Decorrelated:
    """polar(U) S polar(V)^T of the leading singular directions of several matrices.

    The base, which says how they were rounded, comes last.
    """

    weights: tuple[float, ...]
    share: float | None
    smallest: int
    how: Decomposition

    def __call__(self, linalg: Any, matrices: list[Any]) -> Any:
        """Matrix of the same shape, in float64."""
        *matrices, base = matrices
        smaller = min(matrices[0].shape)
        share = self.share if self.share is not None else 1.0 / len(matrices)
        rank = min(smaller, max(self.smallest, floor_of_share(share, smaller)))
        ranks = [rank] * len(matrices)
        return decorrelated(linalg, matrices, base, ranks, self.weights, self.how)


def decorrelated(
    linalg: Any,
    matrices: Sequence[Any],
    base: Any,
    ranks: Sequence[int],
    weights: Sequence[Any],
    how: Decomposition,
) -> Any:
    """polar(U) diag(w_i S_i) polar(V)^T of concatenated leading directions, and task vectors that are rounding alone.

    The latter are cut to their rank, and their directions are not compared with those of others.
    """
    merged, found, errors = None, [], []
    roundings = how.roundings(linalg, base, matrices)
    for matrix, rank, weight, rounding in zip(matrices, ranks, weights, roundings, strict=True):
        if constant(weight) == 0.0:
            continue
        spectrum = how.spectrum(linalg, matrix, rank, floor=rounding.strength)
        if spectrum.rank:
            found.append((spectrum, weight))
            errors.append(rounding.strength)
            continue
        plain = how.spectrum(linalg, matrix, rank).matrix() * weight
        merged = plain if merged is None else merged + plain
    if not found:
        return in_float64(linalg, matrices[0]) * 0.0 if merged is None else merged
    if len(found) == 1:
        spectrum, weight = found[0]
        real = spectrum.matrix() * weight
    else:
        cutoff = how.cutoff(linalg, matrices[0])
        # [outputs, all ranks], [all ranks, inputs]
        left, right = how.polars(linalg, [s for s, _ in found], errors, cutoff)
        weighted = [s.times(w) for s, w in found]
        real = blockwise(linalg, left, weighted, Spectrum.scaled) @ right
    return real if merged is None else merged + real


@method(
    "tsv_c",
    title="TSV-Compress (one task's leading singular vectors)",
    paper=_PAPER,
    base=Base.REQUIRED,
    experts=(1, 1),
    cost="O(m n min(m, n))",
)
@dataclass(frozen=True, slots=True)
class TsvCompress(LeadingRules):
    """One task with its task vector reduced to a share of its singular directions.

        theta = theta_0 + U_k S_k V_k^T,   k = max(1, floor(min(m, n) / tasks))

    With `tasks` tasks stored so, all of them together take about twice the room of the base. Tensors that are no
    matrix are kept in full (`others: base` drops their change). Factors are stored by `weightsmith delta pack` with the
    codec low_rank, one package of the base per task, at ranks that it chooses by its budget; bundles hold masks only.
    O(m n min(m, n)) time.
    """

    tasks: int = shared(
        8, low=1, doc="number of tasks that share the room; the paper's first benchmark has 8"
    )

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Truncate the task vector and add it to the base."""
        base, deltas = task_vectors(base, experts)
        view = self.view(site)
        if view is None:
            merged = self.without_matrix(deltas, (1.0,), site)
            return base if merged is None else base + merged
        low_rank = RankTruncation(Rank(share=1.0 / self.tasks), self.how(site))
        return base + whole(ByMatrix(low_rank, view, site.name), deltas[0], base)


@method(
    "resm",
    title="RESM (R-TSVM): outlier weights and sparsity-adaptive ranks",
    paper="Yang et al., 2025, arXiv:2502.06876 (formulas reconstructed)",
    base=Base.REQUIRED,
    cost="O(N m n min(m, n))",
    generalises=("tsv_m",),
)
@dataclass(frozen=True, slots=True)
class Resm(LeadingRules):
    """TSV-Merge whose tasks have weights from their outliers and ranks from their sparsity, per matrix.

        omega_i = ||O_i tau_i||_1 / ||tau_i||_1,  O_i = [|tau_i| > mu_i + outlier_sigma sigma_i], divided by their mean
        s_i = 1 - ||tau_i||_1^2 / (m n ||tau_i||^2)
        k_i = floor(min(m, n) (1 - s_i) / sum_j (1 - s_j));   the rest as in tsv_m, with w_i omega_i for w_i

    mu_i and sigma_i are mean and deviation of |tau_i|. The paper names outlier-aware weights and sparsity-adaptive
    ranks, but no formulas of it or code were to be had: these are a reconstruction from its description. Weights are
    equal where no task has outliers; equal weights and sparsities give tsv_m. A task that changed nothing has rank 0,
    and one that changed something keeps at least one direction.
    O(N m n min(m, n)) time.
    """

    weight: tuple[float, ...] = strength_parameter()
    outlier_sigma: float = shared(
        3.0, low=0.0, doc="deviations above the mean magnitude from which an element is an outlier"
    )
    scale: float = lambda_parameter()

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Add the weighted, decorrelated singular directions to the base."""
        base, deltas = task_vectors(base, experts)
        view = self.view(site)
        if view is None:
            merged = self.without_matrix(deltas, self.weight, site)
            return base if merged is None else base + merged * self.scale
        function = Reweighted(self.weight, self.outlier_sigma, self.how(site))
        return base + whole(ByMatrix(function, view, site.name), *deltas, base) * self.scale


@dataclass(frozen=True, slots=True)
class Reweighted:
    """`Decorrelated` with ranks and weights measured on the matrices."""

    weights: tuple[float, ...]
    sigma: float
    how: Decomposition = field(default_factory=Decomposition)

    def __call__(self, linalg: Any, matrices: list[Any]) -> Any:
        """Matrix of the same shape, in float64."""
        *matrices, base = matrices
        facts = [_magnitudes(linalg, m, self.sigma) for m in matrices]
        outliers, dense = [o for o, _ in facts], [d for _, d in facts]
        mean = sum(outliers) / len(outliers)
        omegas = [o / mean if mean > 0.0 else 1.0 for o in outliers]
        smaller = min(matrices[0].shape)
        ranks = [max(1, math.floor(smaller * d / sum(dense) + 1e-9)) if d else 0 for d in dense]
        weights = [w * o for w, o in zip(self.weights, omegas, strict=True)]
        return decorrelated(linalg, matrices, base, ranks, weights, self.how)


def _magnitudes(linalg: Any, matrix: Any, sigma: float) -> tuple[Any, float]:
    """Share of the L1 norm in outliers, and 1 - sparsity; (0, 0) for a zero matrix."""
    sizes = abs(in_float64(linalg, matrix))
    largest = constant(sizes.max())
    if largest == 0.0:
        return 0.0, 0.0
    sizes = sizes / largest
    mean, square = constant(sizes.mean()), constant((sizes * sizes).mean())
    threshold = mean + sigma * math.sqrt(max(square - mean * mean, 0.0))
    outliers = linalg.where(sizes > threshold, sizes, 0.0).mean() / sizes.mean()
    return outliers, mean * mean / square
