"""Arcee Fusion: take over only the weights whose change matters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.graph import Scope, Site, Value, apply, exp, largest, log, peak, total, where
from weightsmith.methods.parts.registry import Base, method

_SMOOTHING = 1e-8


@method(
    "arcee_fusion",
    title="Arcee Fusion",
    paper="Arcee, 2024, as published in mergekit",
    base=Base.REQUIRED,
    experts=(1, 1),
    presets={"mergekit": {}},
)
@dataclass(frozen=True, slots=True)
class ArceeFusion:
    """Take the expert's weight where its importance stands out, else keep the base's.

        p = softmax(theta_1) + 1e-8,  q = softmax(theta_0) + 1e-8       over the last axis
        importance = |theta_1 - theta_0| * sum_last p log(p / q)
        theta = theta_1 where importance >= median + 1.5 (q3 - q1), else theta_0

    A quantile is the element floor(q (m - 1)) of the m sorted importances of the tensor, without interpolation,
    and exact for every size; mergekit estimates it from 1e6 samples, with replacement, where m is larger, so
    that its result there changes from run to run. A threshold of zero - more than three quarters of the tensor
    unchanged, or rows of one element, whose softmax says nothing - takes the expert wholesale. 0-d and 1-d
    tensors are one row. The divergence is summed as q [r log r - (r - 1)], r = p / q, which is the same sum (p
    and q have equal totals) without the cancellation that leaves only rounding noise for nearly equal rows.
    """

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Choose between base and expert, element by element."""
        assert base is not None
        expert = experts[0]
        if site.numel == 0:
            return base
        p, q = softmax(expert) + _SMOOTHING, softmax(base) + _SMOOTHING
        divergence = total(q * _divergence_term((p - q) / q), Scope.ROW)
        importance = abs(expert - base) * divergence

        def quantile(share: float) -> Any:
            rank = math.floor(share * (site.numel - 1))
            return largest(importance, site.numel - rank).magnitude

        threshold = apply(_outlier, quantile(0.25), quantile(0.5), quantile(0.75))
        return where(importance >= threshold, expert, base)


def softmax(x: Value) -> Value:
    """exp(x - max) / sum exp(x - max), over the last axis."""
    shifted = exp(x - peak(x, Scope.ROW))
    return shifted / total(shifted, Scope.ROW)


def _divergence_term(x: Value) -> Value:
    """(1 + x) log(1 + x) - x for x > -1: by its series x^2/2 - x^3/6 + x^4/12 - ... where terms would cancel."""
    series = x * 0.0
    for k in range(9, 1, -1):
        series = series * x + (-1.0) ** k / (k * (k - 1))
    ratio = x + 1.0
    return where(abs(x) < 1 / 64, series * x * x, ratio * log(ratio) - x)


def _outlier(first: Any, median: Any, third: Any) -> Any:
    return median + 1.5 * (third - first)
