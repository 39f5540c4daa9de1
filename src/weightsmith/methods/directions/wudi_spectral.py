"""WUDI's early stopping in closed form: filters on the eigenvalues of the tasks' common Gram matrix.

    C = sum_i tau_i^T tau_i / ||tau_i||^2 = V diag(l) V^T
    T = T_0 + (T* - T_0) V diag(f(l)) V^T,   T* = (sum_i tau_i G_i) C^+ (see `wudi`)
    theta = theta_0 + lambda T

f = 1 is WUDI's minimiser and f = 0 its starting point T_0: the sum of the task vectors, their mean, or zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from weightsmith.errors import RecipeError
from weightsmith.graph import Site, Value, floor_of_share, whole
from weightsmith.graph import Spectrum as Directions
from weightsmith.methods.directions.tsv import strength_parameter
from weightsmith.methods.parts.gram import (
    GramRules,
    Reduced,
    cutoff_of,
    directions,
    rounding_floor,
    task_problem,
)
from weightsmith.methods.parts.registry import Base, method, shared
from weightsmith.methods.parts.spectra import ByMatrix
from weightsmith.methods.parts.spectral_ranks import RANK_RULES, EigenvalueSpectrum
from weightsmith.methods.parts.task_vectors import lambda_parameter, task_vectors
from weightsmith.tensors import DType

_PAPER = "Wei et al., ICLR 2026, arXiv:2505.19892"
_COST = "O(N m n min(m, n) + min(N m, n)^3)"
# x of ASWUDI's rules where it is not given, as in its authors' code.
_LEVELS = {"cumulative": 0.95, "loss_elbow": 0.01, "wudi_risk": 1.0}


@dataclass(frozen=True, slots=True)
class SpectralWudi(GramRules):
    """What the three share."""

    weight: tuple[float, ...] = strength_parameter()
    start: str = shared(
        "sum", choices=("sum", "mean", "zero"), doc="T_0: the sum or mean of the task vectors, or 0"
    )
    scale: float = lambda_parameter()

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Add the filtered task vector to the base."""
        base, deltas = task_vectors(base, experts)
        view = self.view(site)
        if view is None:
            merged = self.without_matrix(deltas, self.weight, site)
            return base if merged is None else base + merged * self.scale
        function = Filtered(
            self.weight, self.rank_tolerance, self.start, self.filter(), site.stored, site.name
        )
        return base + whole(ByMatrix(function, view, site.name), *deltas, base) * self.scale

    def filter(self) -> Gains:
        """f."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Gains:
    """f(l) of eigenvalues l: a smooth part, and the number of directions that are kept; the rest stay.

    `kind` is none, tikhonov, landweber or exponential, of `strength` a, n or t; `rule` says how many directions
    are kept (all, share, or a rule of `spectral_ranks`), `level` is its number.
    """

    kind: str
    strength: float
    rule: str = "all"
    level: float = 0.0

    def smooth(self, linalg: Any, values: Any, largest: Any) -> Any:
        """One number in [0, 1] per eigenvalue; `largest` is the largest of all."""
        if self.kind == "tikhonov":
            return values / (values + self.strength)
        if self.kind == "landweber":
            rate = 0.9 / largest
            return 1.0 - (1.0 - rate * values) ** self.strength
        if self.kind == "exponential":
            return -linalg.expm1(-self.strength * values)
        return linalg.ones_like(values)

    def kept(self, linalg: Any, spectrum: EigenvalueSpectrum) -> int:
        """How many directions, from the strongest on, move."""
        if self.rule == "all":
            return spectrum.rank
        if self.rule == "share":
            return -floor_of_share(-self.level, spectrum.inputs)
        return min(spectrum.rank, max(1, RANK_RULES[self.rule](linalg, spectrum, self.level)))


@dataclass(frozen=True, slots=True)
class Filtered:
    """The filtered task vector of several matrices; the base, which says how they were rounded, comes last."""

    weights: tuple[float, ...]
    tolerance: float | None
    start: str
    gains: Gains
    stored: DType
    tensor: str = field(default="", repr=False)

    def __call__(self, linalg: Any, matrices: list[Any]) -> Any:
        """Matrix of the same shape, in float64."""
        *matrices, base = matrices
        deltas = [m if w == 1.0 else m * w for m, w in zip(matrices, self.weights, strict=True)]
        problem = task_problem(linalg, deltas, self.start)
        if problem is None:
            return matrices[0] * 0.0
        reduced = problem.reduced(linalg)
        floor = rounding_floor(linalg, base, matrices, self.tolerance, self.stored)
        cutoff = cutoff_of(linalg, matrices[0], self.tolerance)
        found = directions(linalg, reduced.gram, cutoff, floor, self.tensor)
        images = reduced.residual @ found.left  # [outputs, rank]
        outputs, inputs = matrices[0].shape
        lengths = partial(_lengths, linalg, problem.start, reduced, found, images)
        spectrum = EigenvalueSpectrum(
            found.values, int(outputs), int(inputs), problem.rows, lengths
        )
        moving = found.leading(self.gains.kept(linalg, spectrum))
        images = images[:, : moving.rank] if found.core is None else reduced.residual @ moving.left

        def shares(values: Any) -> Any:
            return self.gains.smooth(linalg, values, found.values[0]) / values

        return problem.start + reduced.step(moving.through(images, shares) @ moving.left.T)


def _lengths(
    linalg: Any, start: Any, reduced: Reduced, found: Directions, images: Any
) -> tuple[Any, Any]:
    """||T_0 v||^2 and ||D v||^2 of the eigenvectors v of C, from `images`, the residual in the directions found.

    D = T_0 C + (D - T_0 C). Those found are v, or b with v = R^T b / sqrt l.
    """
    if reduced.lift is None:
        starts, gaps = start @ found.left, images  # [outputs, rank] both
    else:
        roots = linalg.sqrt(found.values)
        starts, gaps = start @ (reduced.lift.T @ found.left) / roots, images * roots
    targets = starts * found.values + gaps
    return (starts * starts).sum(0), (targets * targets).sum(0)


@method(
    "iwudi",
    title="IWUDI (WUDI with a spectral filter)",
    paper=_PAPER,
    base=Base.REQUIRED,
    cost=_COST,
    generalises=("wudi",),
)
@dataclass(frozen=True, slots=True)
class IWudi(SpectralWudi):
    """WUDI stopped early, by a smooth filter on its eigenvalues l.

        T = T_0 + (T* - T_0) V diag(f(l)) V^T;   theta = theta_0 + lambda T
        exponential   f = 1 - exp(-l t)            gradient flow of L / 2 for the time t (300)
        landweber     f = 1 - (1 - eta l)^n        n steps of gradient descent (150), eta = 0.9 / l_max
        tikhonov      f = l / (l + a)              a ridge a (0.01) around T_0

    T*, C = V diag(l) V^T and the rules for tensors that are no matrix are those of `wudi`; T_0 is the sum of the task
    vectors (start). Matrices (outputs, inputs) in float64. Defaults are those of the authors' tables.
    """

    kind: str = shared(
        "exponential",
        key="filter",
        choices=("exponential", "landweber", "tikhonov", "none"),
        doc="f; none: f = 1, the minimiser itself",
    )
    time: float = shared(300.0, low=0.0, doc="t of the exponential filter")
    iterations: int = shared(150, low=0, doc="n of the Landweber filter")
    ridge: float = shared(0.01, low=0.0, doc="a of the Tikhonov filter")

    def filter(self) -> Gains:
        """f."""
        strengths = {
            "exponential": self.time,
            "landweber": float(self.iterations),
            "tikhonov": self.ridge,
            "none": 0.0,
        }
        return Gains(self.kind, strengths[self.kind])


@method(
    "swudi",
    title="SWUDI (WUDI with a filter and a hard cut)",
    paper=_PAPER,
    base=Base.REQUIRED,
    cost=_COST,
    generalises=("wudi", "iwudi"),
)
@dataclass(frozen=True, slots=True)
class SWudi(SpectralWudi):
    """WUDI's exponential filter on the leading directions alone.

        T = T_0 + (T* - T_0) V diag(f(l)) V^T,   f = 1 - exp(-l t) for the K = ceil(rho n) largest l of n, else 0
        theta = theta_0 + lambda T

    t = 1300 and rho = 0.65 are the authors' for vision models; for Llama 3.2 they use 300 and 0.85, for Qwen2-VL
    rho = 0.01 with lambda = 0.2. T*, V, l and tensors that are no matrix are as in `iwudi`.
    """

    time: float = shared(1300.0, low=0.0, doc="t of the exponential filter")
    share: float = shared(
        0.65, key="rank_share", low=0.0, high=1.0, doc="rho, the share of directions that move"
    )

    def filter(self) -> Gains:
        """f."""
        return Gains("exponential", self.time, "share", self.share)


@method(
    "aswudi",
    title="ASWUDI (WUDI in an adaptive subspace)",
    paper=_PAPER,
    base=Base.REQUIRED,
    cost=_COST,
    generalises=("wudi",),
)
@dataclass(frozen=True, slots=True)
class ASWudi(SpectralWudi):
    """WUDI's minimiser within the leading directions of each matrix, as many as its spectrum suggests.

        T = T_0 + (T* - T_0) V_K V_K^T;   theta = theta_0 + lambda T
        root_participation   K = ceil((sum sqrt l)^2 / sum l)         participation_sqrt in the authors' code
        participation        K = ceil((sum l)^2 / sum l^2)
        stable_rank          K = ceil(sum l^2 / l_max^2)
        entropy              K = ceil(exp(-sum p log p)) with p = l / sum l
        cumulative           smallest K with a share x (.95) of sum l; cumvar_x in the authors' code
        gavish_donoho        number of sqrt l > omega(m, n) median(sqrt l), which the authors advise for full fine-tunes
                             of language models; omega is theirs and not that of Gavish and Donoho
        hard_threshold       number of singular values of all tau_i / ||tau_i|| above each other that exceed
                             omega(min(N m, n) / max(N m, n)) times their median, as Gavish and Donoho (2014) have it
        loss_elbow           smallest K with fit(K) <= x fit(0), x = .01
        wudi_risk            K of least fit(K) + x ||T||^2, x = 1
        fit(K) = sum_{j > K} l_j^2 ||T_0 v_j||^2 + ||D v_j||^2,   D = T* C

    All are the authors', as their code computes them, but for hard_threshold; at least one direction moves. Outside of
    the subspace T stays at T_0 = sum_i tau_i, so large models are merged with lambda near 1/N or from the mean (start:
    mean). x is `level`. T*, V, l and tensors that are no matrix are as in `iwudi`.
    """

    ranks: str = shared(
        "root_participation",
        key="rank_rule",
        choices=tuple(RANK_RULES),
        doc="how many directions move",
    )
    level: float | None = shared(
        None, low=0.0, optional=True, doc="x of the rules that have one; a share but for wudi_risk"
    )

    def filter(self) -> Gains:
        """f."""
        level = self.level if self.level is not None else _LEVELS.get(self.ranks, 0.0)
        if level > 1.0 and self.ranks != "wudi_risk":
            raise RecipeError(
                f"aswudi: level is a share with rank_rule {self.ranks} and must lie in [0, 1], but is {level:g}."
            )
        return Gains("none", 0.0, self.ranks, level)
