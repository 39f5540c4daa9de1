"""OptMerge (WUDI v2): least interference among the leading singular directions of every task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.graph import Site, Value, floor_of_share, whole
from weightsmith.methods.directions.tsv import strength_parameter
from weightsmith.methods.parts.gram import Descent, Problem, begun, cutoff_of, rounding_floor, unit
from weightsmith.methods.parts.matrices import in_float64, others_parameter
from weightsmith.methods.parts.registry import Base, method, shared
from weightsmith.methods.parts.spectra import ByMatrix, Decomposition, LeadingRules
from weightsmith.methods.parts.task_vectors import lambda_parameter, task_vectors
from weightsmith.tensors import DType


@method(
    "optmerge",
    title="OptMerge (WUDI v2)",
    paper="Wei et al., ICLR 2026, arXiv:2505.19892",
    base=Base.REQUIRED,
    cost="O(N m n min(m, n)); solver descent: O(steps m n r) with r directions in all",
    generalises=("wudi",),
    presets={"lora": {"flavour": "lora"}},
)
@dataclass(frozen=True, slots=True)
class OptMerge(LeadingRules):
    """Least interference with denoised task vectors on the leading directions of every task.

        tau_i ~ U_i S_i V_i^T, of which k = max(1, floor(min(m, n) rank_share)) triplets are kept (rank_share: 1/N)
        L(T) = sum_i ||(T - t_i) V_i S_i||^2 / ||tau_i||^2;   theta = theta_0 + lambda T
        full   t_i = top_k(tau_i - mean tau) + mean tau,  from T_0 = sum_i tau_i
        lora   t_i = top_k(tau_i),                        from T_0 = mean tau
        T = T_0 + (sum_i (t_i - T_0) G_i) (sum_i G_i)^+,   G_i = V_i S_i^2 V_i^T / ||tau_i||^2     (solver: closed)

    `solver: descent` runs the authors' schedules: 300 steps of Adam with rate 1e-5 (full), or of gradient descent with
    rate 1e-4 and momentum 0.9 (lora). `solver: closed` is what they would converge to; directions that no task leads in
    stay at T_0 (start, which may also be zero). Where N k is about n the closed form fits tasks that contradict each
    other exactly and grows without sense, which stopping early prevents. Matrices are (outputs, inputs), in float64.
    Embeddings, heads and tensors that are no matrix stay at the base; vision towers, which the authors leave out too,
    are left to a rule of the recipe. A zero task vector takes no part in the interference.
    Unless rank_tolerance is given, directions that the rounding of the stored weights makes count as none (closed).
    """

    others: str = others_parameter("base")
    embeddings: str = shared(
        "base",
        choices=("spectral", "average", "sum", "base"),
        doc="how embeddings and heads are taken: as matrices, or by one of the rules of `others`",
    )
    weight: tuple[float, ...] = strength_parameter()
    flavour: str = shared(
        "full", choices=("full", "lora"), doc="form for full fine-tuning, or for merged adapters"
    )
    rank_share: float | None = shared(
        None,
        low=0.0,
        high=1.0,
        optional=True,
        doc="share of the singular directions kept of each task; none: 1/N",
    )
    solver: str = shared(
        "descent", choices=("descent", "closed"), doc="the authors' optimiser, or its limit"
    )
    start: str | None = shared(
        None,
        choices=("sum", "mean", "zero"),
        optional=True,
        doc="T_0: the sum or mean of the task vectors, or zero; none: by flavour",
    )
    steps: int = shared(300, low=0, high=100_000, doc="with solver descent: steps")
    learning_rate: float | None = shared(
        None, low=0.0, optional=True, doc="with solver descent: size of a step; none: by flavour"
    )
    scale: float = lambda_parameter()

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Add the least interfering task vector to the base."""
        base, deltas = task_vectors(base, experts)
        view = self.view(site)
        if view is None:
            merged = self.without_matrix(deltas, self.weight, site)
            return base if merged is None else base + merged * self.scale
        is_full = self.flavour == "full"
        rate = self.learning_rate if self.learning_rate is not None else 1e-5 if is_full else 1e-4
        function = LeadingInterference(
            weights=self.weight,
            share=self.rank_share,
            centred=is_full,
            start=self.start or ("sum" if is_full else "mean"),
            descent=Descent("adam" if is_full else "momentum", self.steps, rate)
            if self.solver == "descent"
            else None,
            how=self.how(site),
            stored=site.stored,
        )
        return base + whole(ByMatrix(function, view, site.name), *deltas, base) * self.scale


@dataclass(frozen=True, slots=True)
class LeadingInterference:
    """OptMerge's task vector of several matrices; the base, which says how they were rounded, comes last."""

    weights: tuple[float, ...]
    share: float | None
    centred: bool
    start: str
    descent: Descent | None
    how: Decomposition
    stored: DType

    def __call__(self, linalg: Any, matrices: list[Any]) -> Any:
        """Matrix of the same shape, in float64."""
        *matrices, base = matrices
        deltas = [m if w == 1.0 else m * w for m, w in zip(matrices, self.weights, strict=True)]
        wide = [in_float64(linalg, d) for d in deltas]
        mean = begun(wide, "mean")
        targets, factors = [], []
        for delta, full in zip(deltas, wide, strict=True):
            factor = self._factor(linalg, delta)
            if factor is not None:
                targets.append(self._target(linalg, delta, full, mean))
                factors.append(factor)
        start = begun(wide, self.start)
        if not targets:
            return start
        problem = Problem(start, targets, factors)
        if self.descent is not None:
            return problem.descended(linalg, self.descent)
        floor = rounding_floor(linalg, base, matrices, self.how.tolerance, self.stored)
        cutoff = cutoff_of(linalg, matrices[0], self.how.tolerance)
        return problem.solution(linalg, cutoff, floor, self.how.tensor)

    def _rank(self, matrix: Any) -> int:
        smaller = int(min(matrix.shape))
        share = self.share if self.share is not None else 1.0 / len(self.weights)
        return min(smaller, max(1, floor_of_share(share, smaller)))

    def _factor(self, linalg: Any, delta: Any) -> Any:
        """S V^T / ||tau|| of the leading directions; None for a zero task vector."""
        relative = unit(linalg, in_float64(linalg, delta))
        if relative is None:
            return None
        cutoff = self.how.cutoff(linalg, delta)
        return self.how.spectrum(
            linalg, relative, self._rank(delta), cutoff
        ).rows()  # [rank, inputs]

    def _target(self, linalg: Any, delta: Any, full: Any, mean: Any) -> Any:
        rank = self._rank(delta)
        if not self.centred:
            return self.how.spectrum(linalg, delta, rank).matrix()
        return (
            self.how.spectrum(linalg, full - mean, rank, self.how.cutoff(linalg, delta)).matrix()
            + mean
        )
