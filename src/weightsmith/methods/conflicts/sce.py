"""SCE: select where experts differ, calculate weights, erase the minority sign."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.graph import (
    Site,
    Value,
    above,
    add_all,
    dot,
    largest_share,
    maximum,
    scalars,
    solve,
    where,
)
from weightsmith.methods.parts.registry import Base, method, shared
from weightsmith.methods.parts.span import total as add
from weightsmith.methods.parts.task_vectors import agreement, task_vectors, zero_sum_parameter


@method(
    "sce",
    title="SCE",
    paper="Wan et al., 2024, arXiv:2408.07990",
    base=Base.REQUIRED,
    presets={"mergekit": {"select_topk": 1.0, "uniform_below": 1e-6, "smallest_divisor": 1e-6}},
)
@dataclass(frozen=True, slots=True)
class Sce:
    """Per tensor, merge the elements in which the experts differ most, weighted by their energy.

        select     keep the floor(select_topk K) elements of largest variance over the experts, K of them being nonzero
        calculate  w_i = sum tau^_i^2 / sum_j sum tau^_j^2
        erase      drop elements whose sign is not that of sum_i tau^_i
        theta = theta_0 + sum_i w_i tau^_i / sum_i w_i              over the experts left at each element

    select_topk 0.1 is the authors' value; 1 selects everything, and only then do experts that are all alike (or
    a single one) change the base, as their variance is zero. `selection: weights` is what the authors' code
    does: selected elements only set the weights w_i. Exact zero alone counts as zero: mergekit weighs experts
    uniformly where the sum of their mean squares is below 1e-6, which is so for most fine-tunes, and divides by
    at least 1e-6. Variances have the precision of the weights: in float32 those of changes below about 1e-18 lose
    digits, and below 1e-22 they are zero. No step of training is so small, and a scale that kept them would
    take one more pass over the models.
    """

    select_topk: float = shared(
        0.1, low=0.0, high=1.0, doc="share of the varying elements that is selected"
    )
    selection: str = shared("all", choices=("all", "weights"), doc="what the selection limits")
    uniform_below: float = shared(
        0.0, low=0.0, doc="sum of mean squares below which all weights are equal"
    )
    smallest_divisor: float = shared(
        0.0, low=0.0, doc="lower bound of the sum of weights; 0: exact zero becomes 1"
    )
    zero_sum: str = zero_sum_parameter("positive")

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Select, calculate, erase, and add to the base."""
        base, deltas = task_vectors(base, experts)
        mask = self._mask(experts)
        selected = deltas if mask is None else [where(mask, d, 0.0) for d in deltas]
        rule = EnergyShares(self.uniform_below * site.numel)
        weights = solve(rule, [dot(d, d) for d in selected], len(selected))
        agrees = agreement(deltas, self.zero_sum, site=site)
        shares = [where(a, w, 0.0) for a, w in zip(agrees, weights, strict=True)]
        mixed = add_all([d * s for d, s in zip(deltas, shares, strict=True)])
        merged = mixed / self._divisor(add_all(shares))
        if mask is not None and self.selection == "all":
            merged = where(mask, merged, 0.0)
        return base + merged

    def _mask(self, experts: Sequence[Value]) -> Value | None:
        """What is selected; None for everything."""
        if self.select_topk >= 1.0:
            return None
        spread = variance(experts)
        return above(spread, largest_share(spread, self.select_topk, of="nonzero"))

    def _divisor(self, weight: Value) -> Value:
        if self.smallest_divisor > 0.0:
            return maximum(weight, self.smallest_divisor)
        return where(weight.equals(0.0), 1.0, weight)


def variance(values: Sequence[Value]) -> Value:
    """Population variance over the values at each element, exactly zero where all are equal."""
    share = 1.0 / len(values)
    offsets = [v - values[0] for v in values[1:]]
    if not offsets:
        return values[0] - values[0]
    mean = add_all(offsets) * share
    squares = [mean * mean, *((o - mean) * (o - mean) for o in offsets)]
    return add_all(squares) * share


@dataclass(frozen=True, slots=True)
class EnergyShares:
    """w_i = e_i / sum_j e_j; uniform where the sum is zero or below a bound."""

    uniform_below: float

    def __call__(self, *energies: Any) -> list[Any]:
        """N weights that sum to 1."""
        whole = add(energies)
        uniform = (whole == 0) | (whole < self.uniform_below)
        divisor = scalars.where(uniform, 1.0, whole)
        return [scalars.where(uniform, 1.0 / len(energies), e / divisor) for e in energies]
