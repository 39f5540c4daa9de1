"""WUDI-Merging: the task vector that interferes least with any task's inputs, as its task vector shows them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from weightsmith.errors import RecipeError
from weightsmith.graph import Site, Value, whole
from weightsmith.methods.averages.linear import normalized, weighted_average
from weightsmith.methods.directions.iso import frobenius
from weightsmith.methods.directions.tsv import strength_parameter
from weightsmith.methods.parts.gram import (
    Descent,
    GramRules,
    Problem,
    begun,
    cutoff_of,
    rounding_floor,
    task_problem,
)
from weightsmith.methods.parts.matrices import in_float64
from weightsmith.methods.parts.registry import Base, method, shared
from weightsmith.methods.parts.spectra import ByMatrix
from weightsmith.methods.parts.task_vectors import lambda_parameter, task_vectors
from weightsmith.tensors import DType


@method(
    "wudi",
    title="WUDI-Merging",
    paper="Cheng et al., ICML 2025, arXiv:2503.08099",
    base=Base.REQUIRED,
    cost="O(N m n min(m, n) + min(N m, n)^3); solver adam: O(steps m n min(N m, n))",
    presets={
        "reference": {"solver": "adam"},
        "original": {
            "solver": "adam",
            "others": "base",
            "embeddings": "base",
            "exempt": "linear other",
        },
        "actmat": {"gram": "plain"},
    },
    about_presets={
        "actmat": "ACTMat (2026, arXiv:2604.01329), RegMean with tau_i^T tau_i for the Gram matrices of a task's inputs"
    },
)
@dataclass(frozen=True, slots=True)
class Wudi(GramRules):
    """Minimiser of the interference with every task, whose inputs the rows of its task vector span.

        L(T) = sum_i ||(T - tau_i) tau_i^T||^2 / ||tau_i||^2;   theta = theta_0 + lambda T
        T = (sum_i tau_i G_i) (sum_i G_i)^+,   G_i = tau_i^T tau_i / ||tau_i||^2              (solver: closed)

    The closed form is the fixed point of the authors' optimiser: Adam from sum_i tau_i with rate 1e-5, which they stop
    after 300 steps (preset reference, or solver: adam; the same bits every time). Stopping early matters and is better
    in their tables; iwudi and aswudi do it in closed form. Matrices are (outputs, inputs), in float64; a zero task
    vector takes no part (0/0 in the authors' code), and directions without any task vector stay at the base. So do
    those that a given rank_tolerance counts as 0: the pseudo-inverse ^+ is 0 there, and T the minimiser of L among
    those that are 0 there, too. Without one, what rounding of the stored weights makes is averaged. Task vectors of
    tensors that are no matrix, of embeddings and heads are averaged (others, embeddings), as FusionBench and the
    authors' later code do. Their first code, for CLIP and RoBERTa, merges the matrices of attention and of MLPs and
    leaves all else at the base (preset original). Identical experts give their task vector, orthogonal tasks the sum.

    With `gram: plain` G_i = w_i tau_i^T tau_i of the unscaled task vectors, so that long ones count for more and w_i is
    how much a task counts instead of a factor of its task vector: ACTMat (preset actmat). Averages are weighted means
    then, and weights below 0 raise RecipeError.
    """

    weight: tuple[float, ...] = strength_parameter()
    solver: str = shared(
        "closed", choices=("closed", "adam"), doc="closed form, or the authors' optimiser"
    )
    steps: int = shared(
        300, low=0, high=100_000, doc="with solver adam: steps (400 in FusionBench)"
    )
    learning_rate: float = shared(
        1e-5,
        low=0.0,
        doc="with solver adam: size of a step (2e-5 in the authors' code for RoBERTa)",
    )
    scale: float = lambda_parameter()
    gram: str = shared(
        "unit",
        choices=("unit", "plain"),
        doc="Gram matrices of task vectors: of weighted ones divided by their length, or as they are times the weight",
    )

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Add the least interfering task vector to the base."""
        base, deltas = task_vectors(base, experts)
        if self.gram == "plain" and min(self.weight) < 0.0:
            raise RecipeError(
                f"wudi with gram: plain has the weight {min(self.weight):g} at tensor {site.name!r}; it says how much "
                "a task counts, so give 0 or more."
            )
        view = self.view(site)
        if view is None:
            merged = self._without_matrix(deltas, site)
            return base if merged is None else base + merged * self.scale
        descent = Descent("adam", self.steps, self.learning_rate)
        function = LeastInterference(
            self.weight,
            self.rank_tolerance,
            descent if self.solver == "adam" else None,
            site.stored,
            site.name,
            self.gram == "plain",
        )
        return base + whole(ByMatrix(function, view, site.name), *deltas, base) * self.scale

    def _without_matrix(self, deltas: list[Value], site: Site) -> Value | None:
        if self.gram == "plain" and self.rule(site) == "average":
            return weighted_average(deltas, normalized(self.weight))
        return self.without_matrix(deltas, self.weight, site)


@dataclass(frozen=True, slots=True)
class LeastInterference:
    """WUDI's task vector of several matrices; the base, which says how they were rounded, comes last."""

    weights: tuple[float, ...]
    tolerance: float | None
    descent: Descent | None
    stored: DType
    tensor: str = field(default="", repr=False)
    is_plain: bool = False

    def __call__(self, linalg: Any, matrices: list[Any]) -> Any:
        """Matrix of the same shape, in float64."""
        *matrices, base = matrices
        lengths = self._lengths(linalg, matrices) if self.is_plain else None
        problem = self._problem(linalg, matrices, lengths)
        if problem is None:
            return matrices[0] * 0.0
        if self.descent is not None:
            return problem.descended(linalg, self.descent)
        floor = rounding_floor(linalg, base, matrices, self.tolerance, self.stored, lengths)
        cutoff = cutoff_of(linalg, matrices[0], self.tolerance)
        return problem.solution(linalg, cutoff, floor, self.tensor)

    def _lengths(self, linalg: Any, matrices: Sequence[Any]) -> list[float]:
        """What each task vector is divided by so that its Gram matrix is w_i tau_i^T tau_i, up to one factor of all."""
        longest = max(frobenius(linalg, in_float64(linalg, m)) for m in matrices)
        return [longest / math.sqrt(w) if w else math.inf for w in self.weights]

    def _problem(
        self, linalg: Any, matrices: Sequence[Any], lengths: Sequence[float] | None
    ) -> Problem | None:
        if lengths is None:
            pairs = zip(matrices, self.weights, strict=True)
            return task_problem(linalg, [m if w == 1.0 else m * w for m, w in pairs], self._start())
        alive = [
            (in_float64(linalg, m), length)
            for m, length in zip(matrices, lengths, strict=True)
            if 0.0 < length < math.inf
        ]
        if not alive:
            return None
        targets = [m for m, _ in alive]
        return Problem(begun(targets, self._start()), targets, [m / size for m, size in alive])

    def _start(self) -> str:
        """T_0, which matters in directions that are left out alone where there is a closed form.

        From the mean, identical experts are exact.
        """
        if self.descent is not None:
            return "sum"
        return "mean" if self.tolerance is None else "zero"
