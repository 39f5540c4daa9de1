"""How many leading directions of a spectrum count: rules on eigenvalues, and on what each direction is worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from weightsmith.methods.gram import number


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Eigenvalues l_j, falling, and the squared length of the residual in each direction.

    `rows` is the number of rows that the Gram matrix was made from, `inputs` its size.
    """

    values: Any
    images: Any
    rows: int
    inputs: int

    @property
    def rank(self) -> int:
        """How many eigenvalues there are."""
        return int(self.values.shape[0])


def root_participation(linalg: Any, spectrum: Spectrum, _: float) -> int:
    """ceil((sum sqrt l)^2 / sum l)."""
    roots = number(linalg.sqrt(spectrum.values).sum())
    return _up(roots**2 / number(spectrum.values.sum()))


def participation(_: Any, spectrum: Spectrum, __: float) -> int:
    """ceil((sum l)^2 / sum l^2)."""
    shares = spectrum.values / spectrum.values[0]
    return _up(number(shares.sum()) ** 2 / number((shares * shares).sum()))


def stable_rank(_: Any, spectrum: Spectrum, __: float) -> int:
    """ceil(sum l / l_max)."""
    return _up(number((spectrum.values / spectrum.values[0]).sum()))


def entropy(linalg: Any, spectrum: Spectrum, _: float) -> int:
    """ceil(exp(entropy of l / sum l))."""
    shares = spectrum.values / spectrum.values.sum()
    return _up(math.exp(-number((shares * linalg.log(shares)).sum())))


def gavish_donoho(linalg: Any, spectrum: Spectrum, _: float) -> int:
    """How many singular values sqrt l exceed omega(beta) times their median (Gavish and Donoho, 2014).

    omega = 0.56 b^3 - 0.95 b^2 + 1.82 b + 1.43 for the aspect b <= 1; missing eigenvalues count as 0.
    """
    short, long = sorted((spectrum.rows, spectrum.inputs))
    aspect = short / long
    omega = 0.56 * aspect**3 - 0.95 * aspect**2 + 1.82 * aspect + 1.43
    roots = [*map(number, linalg.sqrt(spectrum.values)), *[0.0] * (short - spectrum.rank)]
    middle = (roots[(short - 1) // 2] + roots[short // 2]) / 2.0
    return sum(root > omega * middle for root in roots[: spectrum.rank])


def cumulative(linalg: Any, spectrum: Spectrum, level: float) -> int:
    """The smallest K whose eigenvalues have the share `level` of the sum."""
    return _first_above(linalg, spectrum.values, level)


def loss_elbow(linalg: Any, spectrum: Spectrum, level: float) -> int:
    """The smallest K after which at most the share `level` of the removable loss is left."""
    return _first_above(linalg, spectrum.images / spectrum.values, 1.0 - level)


def risk(linalg: Any, spectrum: Spectrum, level: float) -> int:
    """The K of least (share of the removable loss that is left) + level (share of the whole squared step)."""
    gains = linalg.cumsum(spectrum.images / spectrum.values, 0)
    steps = linalg.cumsum(spectrum.images / (spectrum.values * spectrum.values), 0)
    if number(gains[-1]) == 0.0:
        return 1
    risks = (1.0 - gains / gains[-1]) + level * (steps / steps[-1])
    return int(linalg.argmin(risks)) + 1


def _first_above(linalg: Any, terms: Any, level: float) -> int:
    sums = linalg.cumsum(terms, 0)
    return int((sums < level * sums[-1] * (1.0 - 1e-12)).sum()) + 1


def _up(x: float) -> int:
    return math.ceil(x - 1e-9)


RANK_RULES: Mapping[str, Callable[[Any, Spectrum, float], int]] = {
    "root_participation": root_participation,
    "participation": participation,
    "stable_rank": stable_rank,
    "entropy": entropy,
    "gavish_donoho": gavish_donoho,
    "cumulative": cumulative,
    "loss_elbow": loss_elbow,
    "risk": risk,
}
