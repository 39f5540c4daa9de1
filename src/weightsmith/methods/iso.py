"""Isotropic merging: the directions of the sum of task vectors, all with the same strength."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.methods.matrices import in_float64
from weightsmith.methods.registry import Base, method, shared
from weightsmith.methods.spectra import ByMatrix, Decomposition, SpectralRules, constant
from weightsmith.methods.task_vectors import lambda_parameter, task_vectors
from weightsmith.methods.tsv import strength_parameter
from weightsmith.tensors.graph import Site, Value, whole
from weightsmith.tensors.shares import floor_of_share

_PAPER = "Marczak et al., ICML 2025, arXiv:2502.04959"
_PRESETS = {"reference": {"rank_tolerance": 0.0}, "fusionbench": {"lambda": 1.5}}


@method(
    "iso_c",
    title="Iso-C (isotropic merging)",
    paper=_PAPER,
    base=Base.REQUIRED,
    presets=_PRESETS,
    cost="O(m n min(m, n))",
)
@dataclass(frozen=True, slots=True)
class IsoCommon(SpectralRules):
    """Sum of task vectors with its singular values replaced by their mean.

        M = sum_i w_i tau_i = U S V^T;   theta = theta_0 + lambda mean(S) U V^T

    U, S and V have the directions above rank_tolerance only, and the mean is over them: a matrix of full rank gives
    the paper's result, while one of low rank does not send strength into directions that no task changed (with
    rank_tolerance 0, preset reference, it does, wherever rounding left a trace). The nuclear norm of M is kept. Task
    vectors that are no matrix are averaged (others). lambda is chosen on validation data; FusionBench reports 1.5
    (preset fusionbench). O(m n min(m, n)) time; four matrices in float64.
    """

    weight: tuple[float, ...] = strength_parameter()
    scale: float = lambda_parameter()

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Add the isotropic sum to the base."""
        return _isotropic(self, base, experts, site, 1.0)


@method(
    "iso_cts",
    title="Iso-CTS (isotropic merging, common and task-specific directions)",
    paper=_PAPER,
    base=Base.REQUIRED,
    presets=_PRESETS,
    cost="O(N m n min(m, n))",
    generalises=("iso_c",),
)
@dataclass(frozen=True, slots=True)
class IsoCommonAndSpecific(SpectralRules):
    """Isotropic merging whose weakest common directions give way to directions of single tasks.

        M = sum_i w_i tau_i,  r = min(m, n),  s = round((r - floor(f r)) / N), at most floor(r / N)
        U_c, S_c, V_c: the r - N s strongest directions of M
        U_i, S_i, V_i: the s strongest directions of w_i tau_i - U_c U_c^T w_i tau_i
        theta = theta_0 + lambda sigma polar([U_1 .. U_N U_c]) polar([V_1 .. V_N V_c])^T,   sigma = mean of all S

    f is common_share, .8 in the paper; 1 gives iso_c, and so does a matrix with r < N. Directions below
    rank_tolerance (of the task vector, for what is specific to a task) do not exist; see iso_c for that and for the
    rest. O((N + 1) m n min(m, n)) time; N + 6 matrices in float64.
    """

    weight: tuple[float, ...] = strength_parameter()
    common_share: float = shared(
        0.8, low=0.0, high=1.0, doc="share of the directions that are common to all tasks"
    )
    scale: float = lambda_parameter()

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Add the isotropic directions to the base."""
        return _isotropic(self, base, experts, site, self.common_share)


def _isotropic(
    rules: IsoCommon | IsoCommonAndSpecific,
    base: Value | None,
    experts: Sequence[Value],
    site: Site,
    common_share: float,
) -> Value:
    base, deltas = task_vectors(base, experts)
    view = rules.view(site)
    if view is None:
        merged = rules.without_matrix(deltas, rules.weight, site)
        return base if merged is None else base + merged * rules.scale
    function = Isotropic(rules.weight, common_share, rules.how(site))
    return base + whole(ByMatrix(function, view, site.name), *deltas) * rules.scale


@dataclass(frozen=True, slots=True)
class Isotropic:
    """Common and task-specific directions of several matrices, made orthogonal, with one strength."""

    weights: tuple[float, ...]
    common_share: float
    how: Decomposition

    def __call__(self, linalg: Any, matrices: list[Any]) -> Any:
        """Matrix of the same shape, in float64."""
        cut = self.how.cut(linalg, matrices[0])
        total = weighted_sum(linalg, matrices, self.weights)
        common_rank, own_rank = self.ranks(min(total.shape), len(matrices))
        common = self.how.spectrum(linalg, total, common_rank, cut)
        if own_rank == 0:
            return common.polar() * _mean([common.values]) if common.rank else total * 0.0
        found = [
            *(
                self._specific(linalg, m, w, common.left, own_rank, cut)
                for m, w in zip(matrices, self.weights, strict=True)
            ),
            common,
        ]
        found = [s for s in found if s.rank]
        if not found:
            return total * 0.0
        left = self.how.polar(linalg, linalg.concatenate([s.left for s in found], 1), cut)
        right = self.how.polar(linalg, linalg.concatenate([s.right for s in found]), cut)
        return left @ right * _mean([s.values for s in found])

    def ranks(self, full: int, tasks: int) -> tuple[int, int]:
        """Numbers of common and of each task's own directions; together they are `full`."""
        own = min(round((full - floor_of_share(self.common_share, full)) / tasks), full // tasks)
        return full - own * tasks, own

    def _specific(
        self, linalg: Any, matrix: Any, weight: float, common: Any, rank: int, cut: float
    ) -> Any:
        """The strongest directions of what the common ones leave of a task; none where only rounding is left."""
        task = in_float64(linalg, matrix) * weight
        rest = task - common @ (common.T @ task)
        found = self.how.spectrum(linalg, rest, rank, cut)
        return found.leading(int((found.values > cut * frobenius(linalg, task)).sum()))


def weighted_sum(linalg: Any, matrices: Sequence[Any], weights: Sequence[float]) -> Any:
    """sum_i w_i A_i in float64, from left to right."""
    total = in_float64(linalg, matrices[0]) * weights[0]
    for matrix, weight in zip(matrices[1:], weights[1:], strict=True):
        total = total + in_float64(linalg, matrix) * weight
    return total


def _mean(values: Sequence[Any]) -> Any:
    return sum(v.sum() for v in values) / sum(int(v.shape[0]) for v in values)


def frobenius(linalg: Any, matrix: Any) -> float:
    """Euclidean norm of a float64 matrix, without overflow."""
    largest = constant(abs(matrix).max())
    if largest == 0.0:
        return 0.0
    scaled = matrix / largest
    return largest * constant(linalg.sqrt((scaled * scaled).sum()))
