"""Weighted averages of checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.errors import RecipeError
from weightsmith.graph import Site, Value, add_all, linear_combination
from weightsmith.methods.parts.registry import REQUIRED, Base, method, per_expert, shared


@method(
    "linear",
    title="Linear (weighted average)",
    paper="Wortsman et al., ICML 2022, arXiv:2203.05482",
    base=Base.IGNORED,
    presets={"mergekit": {"weight": REQUIRED}},
    generalises=(
        "soup",
        "wise_ft",
    ),
)
@dataclass(frozen=True, slots=True)
class Linear:
    """Weighted average of the experts.

        theta = sum_i w_i theta_i / sum_i w_i        (normalize)
        theta = sum_i w_i theta_i                    (otherwise)

    Experts and result have one shape; O(N) time. Weights default to 1, the uniform soup of the paper. Weights
    that sum to 0 cannot be normalised and are refused with RecipeError. An average is formed around the expert
    of largest weight, so weights that all experts share come out bit-identical, and weights (0, 1) give expert
    2 exactly.
    """

    weight: tuple[float, ...] = per_expert(1.0, doc="coefficient of each expert")
    normalize: bool = shared(True, doc="divide by the sum of the weights")

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Average the experts; the base plays no part."""
        if self.normalize:
            return weighted_average(experts, normalized(self.weight))
        return linear_combination(experts, self.weight)


@method(
    "soup",
    title="Uniform soup",
    paper="Wortsman et al., ICML 2022, arXiv:2203.05482",
    base=Base.IGNORED,
)
@dataclass(frozen=True, slots=True)
class Soup:
    """Plain mean of the experts, without parameters.

        theta = (1/N) sum_i theta_i

    The result is the expert for N = 1, and bit-identical to the experts wherever they agree.
    """

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Average the experts; the base plays no part."""
        return weighted_average(experts, [1.0 / len(experts)] * len(experts))


def normalized(weights: Sequence[float]) -> list[float]:
    """Weights divided by their sum; raises RecipeError if they sum to 0."""
    total = sum(weights)
    if total == 0:
        raise RecipeError(
            f"Weights {list(weights)} sum to 0 and cannot be normalised; "
            "change them, or merge without normalisation."
        )
    return [w / total for w in weights]


def weighted_average(values: Sequence[Value], weights: Sequence[float]) -> Value:
    """sum_i w_i x_i for weights that sum to 1, written as x_a + sum_i w_i (x_i - x_a).

    a is the position of the largest weight (the first of equals): what all values share is then untouched by
    rounding.
    """
    largest = max(range(len(weights)), key=lambda i: abs(weights[i]))
    anchor = values[largest]
    others = [
        (v - anchor) * w
        for i, (v, w) in enumerate(zip(values, weights, strict=True))
        if i != largest
    ]
    return anchor + add_all(others) if others else anchor


def interpolate(start: Value, end: Value, t: float) -> Value:
    """(1 - t) start + t end, exact at t = 0 and t = 1; other t extrapolate."""
    if t == 1.0:
        return end
    return weighted_average([start, end], [1.0 - t, t])
