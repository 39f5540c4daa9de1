"""Robust reductions as modifiers: what is extreme at an element is pulled in before any method averages it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.errors import RecipeError
from weightsmith.graph import Site, Value, add_all, maximum, minimum, where
from weightsmith.methods.averages.linear import weighted_average
from weightsmith.methods.averages.trimmed_mean import without_extremes
from weightsmith.methods.parts.modifiers import modifier
from weightsmith.methods.parts.registry import Base, shared


@modifier(
    "winsorize",
    title="Winsorised values",
    paper="Tukey, 1962; Dixon, 1960",
    base=Base.IGNORED,
)
@dataclass(frozen=True, slots=True)
class Winsorize:
    """Pull the k smallest and the k largest values of each element to the nearest of the others.

        theta'_i = min(max(theta_i, theta_(k+1)), theta_(N-k)),   theta_(1) <= ... <= theta_(N) at each element

    An average of the result is the winsorised mean. Task vectors move as the experts do, so a base makes no
    difference. N must exceed 2k, else RecipeError.
    """

    k: int = shared(1, low=0, doc="number of experts pulled in at each end of every element")

    def modify(self, base: Value | None, experts: Sequence[Value], site: Site) -> list[Value]:
        """Clamp every expert to the inner range; the base plays no part."""
        middle = _middle("winsorize", experts, self.k)
        if self.k == 0:
            return list(experts)
        low, high = middle[0], middle[0]
        for other in middle[1:]:
            low, high = minimum(low, other), maximum(high, other)
        return [minimum(maximum(expert, low), high) for expert in experts]


@modifier(
    "trimmed",
    title="Trimmed values",
    paper="Yin et al., ICML 2018, arXiv:1803.01498",
    base=Base.IGNORED,
)
@dataclass(frozen=True, slots=True)
class Trimmed:
    """Replace the k smallest and the k largest values of each element by the mean of the others.

        theta'_i = mean of theta_(k+1)..theta_(N-k)   where theta_i is among the k smallest or k largest
        theta'_i = theta_i                            elsewhere

    The plain average of the result is the trimmed mean. Equal values are ranked in the order of the experts, so
    that exactly 2k are replaced. N must exceed 2k, else RecipeError. Cost O(N^2).
    """

    k: int = shared(1, low=0, doc="number of experts replaced at each end of every element")

    def modify(self, base: Value | None, experts: Sequence[Value], site: Site) -> list[Value]:
        """Replace the extremes; the base plays no part."""
        middle = _middle("trimmed", experts, self.k)
        if self.k == 0:
            return list(experts)
        mean = weighted_average(middle, [1.0 / len(middle)] * len(middle))
        result = []
        for i, expert in enumerate(experts):
            rank = _rank(experts, i)
            inside = (rank >= float(self.k)) & (rank < float(len(experts) - self.k))
            result.append(where(inside, expert, mean))
        return result


@modifier(
    "coordinate_median",
    title="Coordinate-wise median",
    paper="Yin et al., ICML 2018, arXiv:1803.01498",
    base=Base.IGNORED,
)
@dataclass(frozen=True, slots=True)
class CoordinateMedian:
    """Put the median of all experts in the place of each, element by element.

        theta'_i = (theta_(a) + theta_(b)) / 2,   a = floor((N + 1) / 2), b = floor((N + 2) / 2)

    With any average, whatever its weights, the result is the median; a sum of N task vectors becomes N times theirs.
    """

    def modify(self, base: Value | None, experts: Sequence[Value], site: Site) -> list[Value]:
        """Replace every expert by the median; the base plays no part."""
        middle = without_extremes(experts, (len(experts) - 1) // 2)
        median = weighted_average(middle, [1.0 / len(middle)] * len(middle))
        return [median] * len(experts)


def _middle(name: str, experts: Sequence[Value], k: int) -> list[Value]:
    if len(experts) <= 2 * k:
        raise RecipeError(
            f"modifier {name} with k = {k} needs at least {2 * k + 1} experts, but has {len(experts)}; "
            "lower k or add experts."
        )
    return without_extremes(experts, k)


def _rank(experts: Sequence[Value], i: int) -> Value:
    """How many values lie below that of expert i, at each element; of equal ones the earlier expert's lies below."""
    own = experts[i]
    below = [
        where(other <= own if j < i else other < own, 1.0, 0.0)
        for j, other in enumerate(experts)
        if j != i
    ]
    return add_all(below)
