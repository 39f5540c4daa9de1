"""Trimmed mean: an elementwise average without the extreme experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.errors import RecipeError
from weightsmith.graph import Site, Value, maximum, minimum
from weightsmith.methods.averages.linear import weighted_average
from weightsmith.methods.parts.registry import Base, method, shared


@method(
    "trimmed_mean",
    title="Trimmed mean",
    paper="Yin et al., ICML 2018, arXiv:1803.01498",
    base=Base.IGNORED,
    experts=(3, None),
    cost="O(k N m n) for k trimmed on each side",
    generalises=("soup",),
)
@dataclass(frozen=True, slots=True)
class TrimmedMean:
    """Coordinate-wise mean of what is left without the k smallest and the k largest values.

        theta = 1/(N - 2k) sum_{j = k+1..N-k} theta_(j),   theta_(1) <= ... <= theta_(N) at each element

    k = 0 is the mean; k = (N - 1) / 2 for odd N is the coordinate-wise median. Up to k experts can hold
    anything but NaN without moving the result outside the range of the others. N must exceed 2k, else
    RecipeError. Cost O(k N).
    """

    k: int = shared(1, low=0, doc="number of experts trimmed at each end of every element")

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Average the experts without the extremes; the base plays no part."""
        kept = len(experts) - 2 * self.k
        if kept < 1:
            raise RecipeError(
                f"trimmed_mean with k = {self.k} needs at least {2 * self.k + 1} experts, but has {len(experts)}; "
                "lower k or add experts."
            )
        middle = without_extremes(experts, self.k)
        return weighted_average(middle, [1.0 / kept] * kept)


def without_extremes(values: Sequence[Value], k: int) -> list[Value]:
    """The N - 2k middle values of each element, in no particular order: k rounds of comparators up and down."""
    remaining = list(values)
    for _ in range(k):
        for i in range(len(remaining) - 1):
            a, b = remaining[i], remaining[i + 1]
            remaining[i], remaining[i + 1] = minimum(a, b), maximum(a, b)
        remaining.pop()
        for i in range(len(remaining) - 1, 0, -1):
            a, b = remaining[i - 1], remaining[i]
            remaining[i - 1], remaining[i] = minimum(a, b), maximum(a, b)
        remaining.pop(0)
    return remaining
