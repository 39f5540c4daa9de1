"""Averages with a weight per element, such as a Fisher information or a second moment of Adam."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

from weightsmith.graph import (
    Site,
    Statistic,
    Value,
    add_all,
    apply,
    dot,
    exp,
    log,
    maximum,
    scalars,
    sqrt,
    total,
    where,
)


def squares(statistic: Statistic) -> Value:
    """Mean squared gradients: as stored (fisher, adam), or from the gradients of single samples."""
    if statistic.kind != "gradients":
        return statistic.value
    sums = add_all([g * g for g in statistic.values])
    return sums if len(statistic.values) == 1 else sums / float(len(statistic.values))


def element_average(
    values: Sequence[Value], weights: Sequence[Value], *, uninformed: str = "average"
) -> Value:
    """sum_i q_i x_i / sum_i q_i per element, for weights q_i >= 0 of any size.

    Where all weights are 0: the mean of the values (uninformed: average), or the first of them (first). Weights are
    taken relative to their largest, so tiny ones neither vanish nor overflow, and the average is formed around the
    first value, so what all values share is untouched by rounding.
    """
    first = values[0]
    if len(values) == 1:
        return first
    largest = reduce(maximum, weights)
    is_informed = largest > 0.0
    divisor = where(is_informed, largest, 1.0)
    shares = [
        where(is_informed, w / divisor, 1.0 if uninformed == "average" or i == 0 else 0.0)
        for i, w in enumerate(weights)
    ]
    norm = add_all(shares)
    pairs = zip(values[1:], shares[1:], strict=True)
    return first + add_all([(v - first) * (share / norm) for v, share in pairs])


def scaled(
    weights: Value,
    rule: str,
    site: Site,
    expert: int,
    *,
    measured: Value | None = None,
    constant: float = 0.0,
) -> Value:
    """Weights over their Euclidean norm (of the model or the tensor) or their mean over the model; zeros stay zero.

    The norm is that of `measured` where it is given, plus a constant.
    """
    if rule == "none":
        return weights
    if rule == "mean":
        ones = weights * 0.0 + 1.0
        sums = total(abs(weights), site.over_model("sum of the weights", expert))
        informed = total(ones.equals(1.0), site.over_model("number of weights", expert))
        return weights / apply(_ratio, sums, informed)
    extent = site.over(rule, "length of the weights", expert)
    measured = weights if measured is None else measured
    return weights / apply(_length, dot(measured, measured, extent), constant)


def power(x: Value, exponent: float) -> Value:
    """x^p of numbers >= 0, with 0^p = 0 for every p > 0 and 1 for p = 0."""
    if exponent == 1.0:
        return x
    if exponent == 0.5:
        return sqrt(x)
    if exponent == 0.0:
        return x * 0.0 + 1.0
    is_positive = x > 0.0
    return where(is_positive, exp(log(where(is_positive, x, 1.0)) * exponent), 0.0)


def _length(square: Any, constant: Any) -> Any:
    is_positive = square > 0
    root = scalars.sqrt(scalars.where(is_positive, square, 1.0))
    length = scalars.where(is_positive, root, 0.0) + constant
    return scalars.where(length > 0, length, 1.0)


def _ratio(sums: Any, count: Any) -> Any:
    is_positive = (sums > 0) & (count > 0)
    return scalars.where(is_positive, sums / scalars.where(is_positive, count, 1.0), 1.0)


def softmax(scores: Sequence[float], factor: float) -> list[float]:
    """exp(c s_i) / sum_j exp(c s_j), of scores and factors c >= 0 of any size."""
    top = max(scores)
    raised = [math.exp(factor * (score - top)) for score in scores]
    return [x / sum(raised) for x in raised]
