"""Isotropic merging: the directions of the sum of task vectors, all with the same strength."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.graph import Site, Spectrum, Value, arbitrary, floor_of_share, whole
from weightsmith.methods.directions.tsv import strength_parameter
from weightsmith.methods.parts.matrices import in_float64
from weightsmith.methods.parts.named_roles import TEXT_PROJECTION
from weightsmith.methods.parts.registry import Base, method, shared
from weightsmith.methods.parts.rounding import arithmetic_of, noise_of_sum, shares_alike
from weightsmith.methods.parts.spectra import (
    ByMatrix,
    Decomposition,
    SpectralRules,
    blockwise,
    constant,
)
from weightsmith.methods.parts.task_vectors import lambda_parameter, task_vectors

_PAPER = "Marczak et al., ICML 2025, arXiv:2502.04959"
_PRESETS: dict[str, dict[str, Any]] = {
    "reference": {"rank_tolerance": 0.0, "exempt": TEXT_PROJECTION},
    "fusionbench": {"lambda": 1.5},
}


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

    U, S and V have the directions above rank_tolerance only, and the mean is over them: a matrix of full rank gives the
    paper's result, while one of low rank does not send strength into directions that no task changed. Unless
    rank_tolerance is given, those are also all that the rounding of stored weights makes: errors of a unit in the last
    place / sqrt 12 each, with singular values up to the lengths of their longest row and column; an M without any other
    is added as it is. With rank_tolerance 0, preset reference, all have the same strength. The nuclear norm of M's
    directions is kept. Task vectors that are no matrix are averaged (others), and in preset reference so is CLIP's text
    projection, as in the authors' code (exempt). lambda is chosen on validation data; FusionBench reports 1.5 (preset
    fusionbench). O(m n min(m, n)) time; four matrices in float64.
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
    return base + whole(ByMatrix(function, view, site.name), *deltas, base) * rules.scale


@dataclass(frozen=True, slots=True)
class Isotropic:
    """Common and task-specific directions of several matrices, made orthogonal, with one strength; the base, which
    says how they were rounded, comes last.
    """

    weights: tuple[float, ...]
    common_share: float
    how: Decomposition

    def __call__(self, linalg: Any, matrices: list[Any]) -> Any:
        """Matrix of the same shape, in float64."""
        *matrices, base = matrices
        cutoff = self.how.cutoff(linalg, matrices[0])
        roundings = self.how.roundings(linalg, base, matrices)
        total = weighted_sum(linalg, matrices, self.weights)
        common_rank, own_rank = self.ranks(min(total.shape), len(matrices))
        floor = noise_of_sum(roundings, self.weights, shares_alike(matrices, roundings))
        common = self.how.spectrum(linalg, total, common_rank, cutoff, floor)
        if own_rank == 0:
            return common.polar() * _mean([common.values]) if common.rank else total
        found, has_rounding = [], False
        for matrix, weight, rounding in zip(matrices, self.weights, roundings, strict=True):
            floors = _Floors(rounding.strength * abs(weight), floor)
            task = in_float64(linalg, matrix) * weight
            own = self._specific(linalg, task, common, own_rank, cutoff, floors)
            found.append((own, floors.own))
            rounding_alone = arithmetic_of(task.shape, frobenius(linalg, task))
            has_rounding = has_rounding or bool((own.values <= rounding_alone).any())
        found = [(s, error) for s, error in [*found, (common, floor)] if s.rank]
        if not found:
            return total
        spectra = [s for s, _ in found]
        # [outputs, all ranks], [all ranks, inputs]
        left, right = self.how.polars(linalg, spectra, [error for _, error in found], cutoff)
        factor = blockwise(linalg, left, spectra, Spectrum.paired) @ right
        isotropic = factor * _mean([s.values for s in spectra])
        return arbitrary(isotropic, self.how.tensor) if has_rounding else isotropic

    def ranks(self, full: int, tasks: int) -> tuple[int, int]:
        """Numbers of common and of each task's own directions; together they are `full`."""
        own = min(round((full - floor_of_share(self.common_share, full)) / tasks), full // tasks)
        return full - own * tasks, own

    def _specific(
        self, linalg: Any, task: Any, common: Spectrum, rank: int, cutoff: float, floors: _Floors
    ) -> Spectrum:
        """The strongest directions of what the common ones leave of a task; none where only rounding is left.

        Errors E of M turn U_c by (I - U_c U_c^T) E V_c S_c^-1, which leaves that times U_c^T tau of the task.
        """
        images = common.left.T @ task  # [common rank, inputs]
        found = self.how.spectrum(linalg, task - common.left @ images, rank, cutoff, floors.own)
        turns = self.how.turns(linalg, common, floors.common)
        missed = ((images @ found.right.T) * turns[:, None]) ** 2  # [common rank, own rank]
        made = floors.own**2 + missed.sum(0)
        return found.only(
            (found.values**2 > made) & (found.values > cutoff * frobenius(linalg, task))
        )


@dataclass(frozen=True, slots=True)
class _Floors:
    """Largest singular values of the errors of one weighted task vector, and of their sum."""

    own: float
    common: float


def weighted_sum(linalg: Any, matrices: Sequence[Any], weights: Sequence[float]) -> Any:
    """sum_i w_i A_i in float64, from left to right."""
    total = in_float64(linalg, matrices[0]) * weights[0]
    for matrix, weight in zip(matrices[1:], weights[1:], strict=True):
        total = total + in_float64(linalg, matrix) * weight
    return total


def _mean(values: Sequence[Any]) -> Any:
    return sum(v.sum() for v in values) / sum(int(v.shape[0]) for v in values)


def length_of(linalg: Any, matrix: Any) -> Any:
    """Euclidean norm of a float64 matrix, without overflow."""
    largest = constant(abs(matrix).max())
    if largest == 0.0:
        return 0.0
    scaled = matrix / largest
    return largest * linalg.sqrt((scaled * scaled).sum())


def frobenius(linalg: Any, matrix: Any) -> float:
    """`length_of` as a number."""
    return constant(length_of(linalg, matrix))
