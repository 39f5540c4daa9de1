"""How many leading directions of a spectrum count: rules on eigenvalues, and on what each direction is worth.

They are the rules of ASWUDI's code (Wei et al., ICLR 2026) on the eigenvalues l_1 >= ... >= l_n of its matrix C, which
has n rows; where that code raises small eigenvalues to 1e-8, here those that are rounding are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from weightsmith.methods.parts.gram import number


@dataclass(frozen=True, slots=True)
class EigenvalueSpectrum:
    """The eigenvalues l_j that are not rounding, falling, and what the rules know beside them.

    `outputs` and `inputs` are the sizes m and n of one task vector, `rows` those of all that C was made from.
    `lengths` gives two numbers for each direction v_j: ||T_0 v_j||^2 of the start and ||D v_j||^2 of D = T* C. They
    cost a product of matrices, which most rules do without.
    """

    values: Any
    outputs: int
    inputs: int
    rows: int
    lengths: Callable[[], tuple[Any, Any]]

    @property
    def rank(self) -> int:
        """How many eigenvalues there are."""
        return int(self.values.shape[0])


def root_participation(linalg: Any, spectrum: EigenvalueSpectrum, _: float) -> int:
    """ceil((sum sqrt l)^2 / sum l)."""
    roots = number(linalg.sqrt(spectrum.values).sum())
    return _up(roots**2 / number(spectrum.values.sum()))


def participation(_: Any, spectrum: EigenvalueSpectrum, __: float) -> int:
    """ceil((sum l)^2 / sum l^2)."""
    shares = spectrum.values / spectrum.values[0]
    return _up(number(shares.sum()) ** 2 / number((shares * shares).sum()))


def stable_rank(_: Any, spectrum: EigenvalueSpectrum, __: float) -> int:
    """ceil(sum l^2 / l_max^2), which is ||C||^2 / ||C||_2^2."""
    shares = spectrum.values / spectrum.values[0]
    return _up(number((shares * shares).sum()))


def entropy(linalg: Any, spectrum: EigenvalueSpectrum, _: float) -> int:
    """ceil(exp(entropy of l / sum l))."""
    shares = spectrum.values / spectrum.values.sum()
    return _up(math.exp(-number((shares * linalg.log(shares)).sum())))


def gavish_donoho(linalg: Any, spectrum: EigenvalueSpectrum, _: float) -> int:
    """How many sqrt l exceed omega times the median of all n, the lower of two, as ASWUDI's code counts them.

        omega = sqrt(2 (b + 1) + 8 b / (b + 1 + sqrt(b^2 + 14 b + 1))) / mu,   b = min(m, n) / max(m, n)
        mu = sqrt((1 - b)^2 + b), or sqrt(2 + sqrt 3) for b >= 0.9999

    This is not the rule of the paper that it is named after: b is that of one task vector while l belongs to all, and
    mu stands for the median of the Marchenko-Pastur law. See `hard_threshold`.
    """
    short, long = sorted((spectrum.outputs, spectrum.inputs))
    b = short / long
    optimum = math.sqrt(2.0 * (b + 1.0) + 8.0 * b / (b + 1.0 + math.sqrt(b * b + 14.0 * b + 1.0)))
    middle = math.sqrt((1.0 - b) ** 2 + b) if b < 0.9999 else math.sqrt(2.0 + math.sqrt(3.0))
    place = spectrum.inputs // 2
    roots = linalg.sqrt(spectrum.values)
    median = number(roots[place]) if place < spectrum.rank else 0.0
    return int((roots > optimum / middle * median).sum())


def hard_threshold(linalg: Any, spectrum: EigenvalueSpectrum, _: float) -> int:
    """How many singular values sqrt l of all task vectors above each other exceed omega times their median.

    That is the rule of Gavish and Donoho (2014) for noise of unknown size: omega = 0.56 b^3 - 0.95 b^2 + 1.82 b + 1.43
    for the aspect b <= 1 of the (rows, n) matrix; singular values that are rounding count as 0.
    """
    short, long = sorted((spectrum.rows, spectrum.inputs))
    aspect = short / long
    omega = 0.56 * aspect**3 - 0.95 * aspect**2 + 1.82 * aspect + 1.43
    roots = [*map(number, linalg.sqrt(spectrum.values)), *[0.0] * (short - spectrum.rank)]
    middle = (roots[(short - 1) // 2] + roots[short // 2]) / 2.0
    return sum(root > omega * middle for root in roots[: spectrum.rank])


def cumulative(linalg: Any, spectrum: EigenvalueSpectrum, level: float) -> int:
    """The smallest K whose eigenvalues have the share `level` of the sum."""
    sums = linalg.cumsum(spectrum.values, 0)
    return int((sums < level * sums[-1] * (1.0 - _ROUNDING)).sum()) + 1


def loss_elbow(linalg: Any, spectrum: EigenvalueSpectrum, level: float) -> int:
    """The smallest K for which fit(K) <= level fit(0), see `_fits`."""
    fits = _fits(linalg, spectrum)
    return int((fits > level * fits[0] * (1.0 + _ROUNDING)).sum())


def wudi_risk(linalg: Any, spectrum: EigenvalueSpectrum, level: float) -> int:
    """The K, counted from 0, of least fit(K) + level norm(K), the first of equal ones.

    norm(K) = ||T_K||^2, of T_K = T_0 + (T* - T_0) V_K V_K^T, in the directions v_j.
    """
    starts, targets = spectrum.lengths()
    inside = targets / (spectrum.values * spectrum.values)
    norms = _from(linalg, starts) + _up_to(linalg, inside)
    return int(linalg.argmin(_fits(linalg, spectrum) + level * norms))


def _fits(linalg: Any, spectrum: EigenvalueSpectrum) -> Any:
    """fit(K) for K = 0 .. rank: the sum over j > K of l_j^2 ||T_0 v_j||^2 + ||D v_j||^2.

    That is ||T_K C - D||^2 without the products -2 l_j <T_0 v_j, D v_j>, which ASWUDI's code leaves out.
    """
    starts, targets = spectrum.lengths()
    return _from(linalg, spectrum.values * spectrum.values * starts + targets)


def _from(linalg: Any, terms: Any) -> Any:
    """Sums of all terms, of all but the first, ... and of none."""
    return linalg.flip(_up_to(linalg, linalg.flip(terms, (0,))), (0,))


def _up_to(linalg: Any, terms: Any) -> Any:
    """Sums of no term, of the first, of the first two, ... and of all."""
    return linalg.concatenate([terms[:1] * 0.0, linalg.cumsum(terms, 0)])


def _up(x: float) -> int:
    return math.ceil(x - 1e-9)


# Sums of shares that differ by less are equal.
_ROUNDING = 1e-12

RANK_RULES: Mapping[str, Callable[[Any, EigenvalueSpectrum, float], int]] = {
    "root_participation": root_participation,
    "participation": participation,
    "stable_rank": stable_rank,
    "entropy": entropy,
    "gavish_donoho": gavish_donoho,
    "hard_threshold": hard_threshold,
    "cumulative": cumulative,
    "loss_elbow": loss_elbow,
    "wudi_risk": wudi_risk,
}
