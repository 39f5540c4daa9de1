"""Methods whose result is a linear combination of the inputs with coefficients that depend only on their dot products.

Such a method is one Gram matrix, a tiny solver, and one linear pass. Here are the pieces they share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weightsmith.graph import (
    Number,
    Scalar,
    Scope,
    Value,
    add_all,
    dot,
    linear_combination,
    scalars,
    solve,
)

# Up to this size of the coefficients the anchored form below cannot cost digits.
_MODERATE = 2.0
# A mean of unit vectors shorter than this is rounding of their float64 dot products, not a direction.
NO_DIRECTION = 3e-8
# 1 - cos^2 up to which two directions count as one line; mergekit's threshold for NuSLERP.
_LINE = 1e-16
# 1 - cos below which sin(a omega) / sin(omega) is replaced by its series, whose error there is below 1e-12.
_NEAR = 1e-6


def upper_triangle(values: Sequence[Value], scope: Scope = Scope.TENSOR) -> list[Scalar]:
    """Dot products <x_i, x_j> for i <= j, row by row: N (N + 1) / 2 numbers."""
    return [
        dot(values[i], values[j], scope) for i in range(len(values)) for j in range(i, len(values))
    ]


def symmetric(n: int, triangle: Sequence[Any]) -> list[list[Any]]:
    """The N x N matrix of an upper triangle as `upper_triangle` orders it."""
    rows: list[list[Any]] = [[0.0] * n for _ in range(n)]
    entries = iter(triangle)
    for i in range(n):
        for j in range(i, n):
            rows[i][j] = rows[j][i] = next(entries)
    return rows


def vectors_described(count: int) -> int:
    """N for `count` = N weights + N (N + 1) / 2 dot products."""
    n = 0
    while n + n * (n + 1) // 2 < count:
        n += 1
    return n


def span_combination(values: Sequence[Value], coefficients: Sequence[Number]) -> Value:
    """sum_i c_i x_i, written around x_0 so that what all values share is untouched if the coefficients sum to 1:

        x_0 (c_0 + s sum_{i>0} c_i) + sum_{i>0} c_i (x_i - s x_0)

    s is 1, or 0 where a c_i, i > 0, is so large that the difference would lose digits.
    """
    shift, own = solve(_anchoring, coefficients, 2)
    anchor = values[0]
    others = linear_combination([v - anchor * shift for v in values[1:]], coefficients[1:])
    return anchor * own + others


def _anchoring(first: Any, *others: Any) -> tuple[Any, Any]:
    shift: Any = 1.0
    for c in others:
        shift = scalars.where(abs(c) <= _MODERATE, shift, 0.0)
    return shift, first + shift * total(others)


def total(numbers: Sequence[Any]) -> Any:
    """Sum from left to right."""
    first, *rest = numbers
    for number in rest:
        first = first + number
    return first


def cosine(aa: Any, bb: Any, ab: Any) -> Any:
    """Cosine of two vectors from their dot products, within [-1, 1]; 0 if one of them is zero."""
    return scalars.clamp(scalars.divide(ab, root(aa) * root(bb)), -1.0, 1.0)


def root(x: Any) -> Any:
    """Square root of a number that is negative only by rounding, with a finite gradient at 0."""
    positive = x > 0
    return scalars.where(positive, scalars.sqrt(scalars.where(positive, x, 1.0)), 0.0)


def arc_coefficients(cos: Any, t: Any, lerp_above: Any) -> tuple[Any, Any]:
    """Coefficients sin((1-t) omega)/sin(omega) and sin(t omega)/sin(omega) of the arc between two vectors.

    Where |cos| > lerp_above, and where the vectors lie on one line (antipodes, for which no arc is defined,
    among them), they are 1 - t and t. Near cos = 1 a series keeps the digits that sin(omega) would lose.
    """
    straight = (abs(cos) > lerp_above) | (1.0 - cos * cos <= _LINE)
    near = cos > 1.0 - _NEAR
    omega = scalars.acos(scalars.where(straight, 0.0, scalars.where(near, 0.0, cos)))
    sine = scalars.sin(omega)
    versine = 1.0 - cos
    omega_squared = versine * (2.0 + versine / 3.0)

    def coefficient(share: Any) -> Any:
        series = share * (1.0 + (1.0 - share * share) * omega_squared / 6.0)
        curved = scalars.where(near, series, scalars.sin(share * omega) / sine)
        return scalars.where(straight, share, curved)

    return coefficient(1.0 - t), coefficient(t)


def plain_sum(values: Sequence[Value], coefficients: Sequence[Number]) -> Value:
    """sum_i c_i x_i from left to right, leaving out multiplications by the literal 1."""
    return add_all(
        [
            v if not isinstance(c, Scalar) and c == 1.0 else v * c
            for v, c in zip(values, coefficients, strict=True)
        ]
    )
