"""The stages of generalised task arithmetic, of which every method of the family is a short composition:

    delta       tau_i = theta_i - theta_0
    sparsify    keep_largest, keep_between, keep_at_random, keep_by_rank
    rescale     by the keep probability, or to the L1 norm before
    weight      w_i tau_i
    consensus   elect a sign per element and keep what agrees with it, or keep everything
    reduce      sum, or divide by the weights that took part
    scale       theta = theta_0 + lambda tau

A density of 1 or more leaves a task vector untouched, 0 gives zeros, and otherwise floor(density N) elements
are kept exactly where a magnitude decides, equal magnitudes in the order of their flat index, or over the model by
their rank. Zero deltas stay zero in every stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from weightsmith.errors import RecipeError
from weightsmith.graph import (
    Extent,
    Scope,
    Site,
    Threshold,
    Value,
    above,
    add_all,
    apply,
    count,
    floor_of_share,
    largest,
    largest_share,
    minimum,
    part,
    peak,
    row_rank,
    scalars,
    sign,
    total,
    value,
    where,
    whole,
)
from weightsmith.methods.parts.matrices import in_dtype_of, in_float64
from weightsmith.methods.parts.registry import per_expert, shared
from weightsmith.methods.parts.span import plain_sum

# Weights that sum to less than this are not divided by; mergekit's threshold.
_NO_WEIGHT = 1e-8

# What `true` means for a rescale of randomly dropped, and of trimmed, task vectors.
RANDOM_RESCALE = {"paper": "probability", "mergekit": "l1"}
TRIMMED_RESCALE = {"paper": "l1"}
NORMALIZE = {"paper": "absolute", "mergekit": "signed"}


# Parameters that the methods of the family share ----------------------------------------------------------------


def weight_parameter() -> Any:
    """w_i."""
    return per_expert(1.0, doc="coefficient of each task vector, applied before signs are elected")


def density_parameter(default: float, doc: str) -> Any:
    """Share of elements that a sparsifier keeps."""
    return per_expert(default, low=0.0, high=1.0, doc=doc)


def normalize_parameter(default: str, *, count: bool = False) -> Any:
    """How the weighted sum becomes a mean."""
    return shared(
        default,
        choices=("none", "absolute", "signed", *(("count",) if count else ())),
        switch=NORMALIZE,
        doc="divide by the sum of |w_i| (absolute) or of w_i (signed) over the experts that take part in an element"
        + (", or by their number (count)" if count else ""),
    )


def lambda_parameter() -> Any:
    """The factor of the merged task vector."""
    return shared(1.0, key="lambda", doc="coefficient of the merged task vector")


def zero_sum_parameter(default: str = "zero", *, majority: bool = False) -> Any:
    """The sign of elements that cancel exactly."""
    return shared(
        default,
        choices=("zero", "positive", "majority", "minority") if majority else ("zero", "positive"),
        doc="sign elected where the task vectors cancel: none or +"
        + (", or the more (less) frequent sign of the whole model" if majority else ""),
    )


def rescale_parameter(default: str, *, random: bool) -> Any:
    """What makes up for dropped elements."""
    return shared(
        default,
        choices=("none", "probability", "l1") if random else ("none", "l1"),
        switch=RANDOM_RESCALE if random else TRIMMED_RESCALE,
        doc="what makes up for dropped elements: division by the probability of being kept, or the L1 norm before",
    )


def rescale_floor_parameter() -> Any:
    """The L1 norm below which nothing is rescaled."""
    return shared(
        0.0, low=0.0, doc="with rescale l1: L1 norm below which a task vector is not rescaled"
    )


# Delta ----------------------------------------------------------------------------------------------------------


def task_vectors(base: Value | None, experts: Sequence[Value]) -> tuple[Value, list[Value]]:
    """The base, and tau_i = theta_i - theta_0."""
    assert base is not None
    return base, [e - base for e in experts]


# Sparsify -------------------------------------------------------------------------------------------------------


def keep_largest(
    delta: Value,
    density: float,
    extent: Extent,
    site: Site,
    *,
    at_least: int = 0,
    among: Value | None = None,
    one_more: bool = False,
    ranked: Value | None = None,
) -> Value:
    """Zero all but the floor(density N) elements of largest magnitude, N counted in the extent, of all or of a mask.

    Over a row or tensor `at_least` elements survive a density above 0. With `one_more` it is one element more. `ranked`
    takes the place of the magnitudes.
    """
    size = abs(delta) if ranked is None else ranked
    if density >= 1.0:
        return delta
    if density <= 0.0:
        return delta * 0.0
    if extent is Scope.ROW:
        wanted = max(floor_of_share(density, site.row_length) + one_more, at_least)
        return _largest_of_rows(delta, size, min(wanted, site.row_length), site.row_length)
    if one_more:
        return _selected(delta, size, largest(size, OneMore(density, at_least), extent))
    if extent is Scope.TENSOR and at_least > density * site.numel:
        return _selected(delta, size, largest(size, at_least))
    if among is not None:
        k = apply(CountOfShare(density), count(among, part(extent, "counted")))
        return _selected(delta, size, largest(size, k, extent))
    return _selected(delta, size, largest_share(size, density, extent))


@dataclass(frozen=True, slots=True)
class OneMore:
    """floor(share n) + 1, at least so many."""

    share: float
    at_least: int = 0

    def __call__(self, n: int) -> int:
        """How many of n elements."""
        return max(floor_of_share(self.share, n) + 1, self.at_least)


def _largest_of_rows(delta: Value, magnitude: Value, kept: int, length: int) -> Value:
    """Zero all but the `kept` elements of largest magnitude of each row, equal ones in the order of their index.

    The element of rank length - kept has the smallest magnitude that is kept. Those equal to it have the ranks from
    `below` on, in the order of their index.
    """
    if kept <= 0:
        return delta * 0.0
    if kept >= length:
        return delta
    rank = row_rank(magnitude)
    smallest = total(where(rank.equals(float(length - kept)), magnitude, 0.0), Scope.ROW)
    over = magnitude > smallest
    below = count(magnitude < smallest, Scope.ROW)
    last = below - count(over, Scope.ROW) + float(kept)
    equal = where(magnitude < smallest, 0.0, where(rank < last, delta, 0.0))
    return where(over, delta, equal)


def keep_between(delta: Value, density: float, gamma: float, site: Site) -> Value:
    """Zero the floor(gamma N) elements of largest magnitude, keep the next floor(density N), zero the rest.

    Where fewer than that remain, fewer of the largest are removed.
    """
    if density >= 1.0:
        return delta
    kept = floor_of_share(density, site.numel)
    if kept == 0:
        return delta * 0.0
    outliers = min(floor_of_share(gamma, site.numel), site.numel - kept)
    inside = _selected(delta, abs(delta), largest(abs(delta), outliers + kept))
    if outliers == 0:
        return inside
    return where(above(abs(delta), largest(abs(delta), outliers)), 0.0, inside)


def keep_at_random(delta: Value, density: float, noise: Value, rescale: str) -> Value:
    """Keep each element with probability `density`; with rescale "probability", divide what is kept by it."""
    if density >= 1.0:
        return delta
    if density <= 0.0:
        return delta * 0.0
    kept = delta / density if rescale == "probability" else delta
    return where(noise < density, kept, 0.0)


def keep_by_rank(
    delta: Value,
    density: float,
    epsilon: float,
    noise: Value,
    site: Site,
    rescale: str,
    ranking: str = "row",
) -> Value:
    """Keep each element with a probability that grows with its magnitude:

        q = (density - epsilon) + 2 epsilon s          s from 0 for the smallest to 1 for the largest

    `ranking` says what s is: r / (n - 1) of the rank r = 0..n-1 in a row or the whole tensor, or with "magnitude"
    (|x| - min) / (max - min) in a row. Where there is nothing to compare with q is the density. With rescale
    "probability", what is kept is divided by its own q. Raises RecipeError if density - epsilon and density + epsilon
    do not lie inside (0, 1).
    """
    if density >= 1.0:
        return delta
    if density <= 0.0:
        return delta * 0.0
    if not 0.0 < density - epsilon <= density + epsilon < 1.0:
        raise RecipeError(
            f"density {density:g} with epsilon {epsilon:g} at tensor {site.name!r} asks for keep probabilities from "
            f"{density - epsilon:g} to {density + epsilon:g}, which must lie strictly between 0 and 1; lower epsilon, "
            "or use density 1 to keep everything."
        )
    if (site.numel if ranking == "tensor" else site.row_length) < 2:
        return keep_at_random(delta, density, noise, rescale)
    if ranking == "row":
        step = 2.0 * epsilon / (site.row_length - 1)
        probability = row_rank(abs(delta)) * step + (density - epsilon)
    else:
        share = whole(_rank_in_tensor, delta) if ranking == "tensor" else _share_of_row(delta)
        probability = share * (2.0 * epsilon) + (density - epsilon)
    kept = delta / probability if rescale == "probability" else delta
    return where(noise < probability, kept, 0.0)


@dataclass(frozen=True, slots=True)
class CountOfShare:
    """floor(share N) of a number of elements that is counted in a pass."""

    share: float

    def __call__(self, counted: Any) -> float:
        """A whole number."""
        return float(floor_of_share(self.share, int(counted)))


def _rank_in_tensor(linalg: Any, array: Any) -> Any:
    """r / (n - 1), equal magnitudes ranking by index."""
    flat = abs(array).reshape(-1)
    order = linalg.argsort(flat, **({"kind": "stable"} if linalg is np else {"stable": True}))
    places = linalg.cumsum(linalg.ones_like(in_float64(linalg, flat)), 0) - 1.0
    share = linalg.zeros_like(flat)
    share[order] = in_dtype_of(flat, places / places[-1])
    return share.reshape(array.shape)


def _share_of_row(delta: Value) -> Value:
    magnitude = abs(delta)
    low, high = -peak(-magnitude, Scope.ROW), peak(magnitude, Scope.ROW)
    spread = high - low
    share = (magnitude - low) * apply(_reciprocal, spread)
    return minimum(where(value(spread).equals(0.0), 0.5, share), 1.0)


def _reciprocal(x: Any) -> Any:
    return 1.0 / scalars.where(x == 0, 1.0, x)


def _selected(delta: Value, ranked: Value, threshold: Threshold) -> Value:
    return where(above(ranked, threshold), delta, 0.0)


# Rescale --------------------------------------------------------------------------------------------------------


def restore_l1(
    kept: Value, delta: Value, density: float, floor: float, extent: Extent = Scope.TENSOR
) -> Value:
    """kept * sum|delta| / sum|kept|; as it is for density 1 and where a sum is 0 or below `floor`."""
    if density >= 1.0 or density <= 0.0:
        return kept
    before = total(abs(delta), part(extent, "before"))
    after = total(abs(kept), part(extent, "after"))
    return kept * apply(_l1_ratio, before, after, floor)


def restore_l1_of_each(
    kept: Sequence[Value], deltas: Sequence[Value], densities: Sequence[float], floor: float
) -> list[Value]:
    """`restore_l1` of every task vector, over its tensor."""
    return [
        restore_l1(k, delta, density, floor)
        for k, delta, density in zip(kept, deltas, densities, strict=True)
    ]


def _l1_ratio(before: Any, after: Any, floor: Any) -> Any:
    untouched = (after == 0) | (before < floor) | (after < floor)
    return scalars.where(untouched, 1.0, before / scalars.where(untouched, 1.0, after))


# Weight, consensus, reduce, scale -------------------------------------------------------------------------------


def fuse(
    base: Value,
    vectors: Sequence[Value],
    weights: Sequence[float],
    *,
    site: Site,
    normalize: str,
    scale: float,
    zero_sum: str | None = None,
    restore: Scope | None = None,
) -> Value:
    """base + scale * merged, merged from weighted vectors; with `zero_sum` after an election of signs."""
    merged = merge_vectors(
        vectors, weights, site=site, normalize=normalize, zero_sum=zero_sum, restore=restore
    )
    return base + (merged if scale == 1.0 else merged * scale)


def merge_vectors(
    vectors: Sequence[Value],
    weights: Sequence[float],
    *,
    site: Site,
    normalize: str,
    zero_sum: str | None,
    restore: Scope | None = None,
) -> Value:
    """The merged task vector: sum or mean of w_i tau_i over all experts, or over those that agree in sign.

    With `restore`, task vectors that agree are multiplied by what they lost in the election: the number of nonzero
    elements before it over that of those that agree, in the scope.
    """
    if zero_sum is None:
        divisor = sum(_share(w, normalize) for w in weights) if normalize != "none" else 1.0
        if abs(divisor) < _NO_WEIGHT:
            divisor = 1.0
        merged = plain_sum(vectors, weights)
        return merged if divisor == 1.0 else merged / divisor
    weighted = weigh(vectors, weights)
    agrees = agreement(weighted, zero_sum, site=site)
    agreeing = where_they_agree(weighted, agrees)
    if restore is not None:
        agreeing = [_restored(v, a, restore) for v, a in zip(weighted, agreeing, strict=True)]
    return disjoint_mean(agreeing, agrees, weights, normalize)


def _restored(before: Value, agreeing: Value, scope: Scope) -> Value:
    counts = [count(abs(v) > 0.0, scope) for v in (before, agreeing)]
    return agreeing * apply(_over, *counts)


def _over(before: Any, after: Any) -> Any:
    return before / scalars.where(after == 0, 1.0, after)


def weigh(vectors: Sequence[Value], weights: Sequence[float]) -> list[Value]:
    """w_i tau_i."""
    return [v if w == 1.0 else v * w for v, w in zip(vectors, weights, strict=True)]


def _share(weight: float, normalize: str) -> float:
    if normalize == "count":
        return 1.0
    return abs(weight) if normalize == "absolute" else weight


def agreement(
    vectors: Sequence[Value], zero_sum: str, vote: str = "mass", *, site: Site
) -> list[Value]:
    """Masks of the elements whose sign is the elected one, that of the sum (vote mass) or of the sum of signs (count).

    Zeros agree with nothing but zero.
    """
    signs = [sign(v) for v in vectors]
    elected = elect_sign(add_all(vectors if vote == "mass" else signs), zero_sum, site)
    return [s.equals(elected) for s in signs]


def where_they_agree(vectors: Sequence[Value], agrees: Sequence[Value]) -> list[Value]:
    """Each vector where its mask holds, 0 elsewhere."""
    return [where(a, v, 0.0) for a, v in zip(agrees, vectors, strict=True)]


def disjoint_mean(
    agreeing: Sequence[Value], agrees: Sequence[Value], weights: Sequence[float], normalize: str
) -> Value:
    """The sum of what agrees, divided by the weights of those that do (as `normalize` says; none: the sum)."""
    merged = add_all(agreeing)
    if normalize == "none":
        return merged
    shares = [_share(w, normalize) for w in weights]
    weight = add_all([where(a, w, 0.0) for a, w in zip(agrees, shares, strict=True)])
    return merged / where(weight.equals(0.0), 1.0, weight)


def elect_sign(sums: Value, zero_sum: str, site: Site) -> Value:
    """-1, 0 or +1 per element; where the sum is 0, what `zero_sum` says."""
    elected = sign(sums)
    if zero_sum == "zero":
        return elected
    if zero_sum == "positive":
        return where(sums >= 0.0, 1.0, -1.0)
    votes = total(elected, site.over_model("elected signs"))
    return where(
        sums.equals(0.0), apply(_sign, votes if zero_sum == "majority" else -votes), elected
    )


def _sign(x: Any) -> Any:
    return scalars.where(x > 0, 1.0, scalars.where(x < 0, -1.0, 0.0))
