"""Multi-SLERP: a barycentre of many models on a sphere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.graph import Number, Site, Value, linear_combination, scalars, solve
from weightsmith.methods.averages.linear import normalized
from weightsmith.methods.parts.registry import REQUIRED, Base, method, per_expert, shared
from weightsmith.methods.parts.span import (
    NO_DIRECTION,
    root,
    span_combination,
    symmetric,
    total,
    upper_triangle,
    vectors_described,
)


@method(
    "multislerp",
    title="Multi-SLERP",
    paper="Goddard, 2025, goddard.blog/posts/multislerp-wow-what-a-cool-idea",
    base=Base.OPTIONAL,
    presets={"mergekit": {"weight": REQUIRED, "eps": 1e-8}},
    cost="O(N^2 m n)",
)
@dataclass(frozen=True, slots=True)
class MultiSlerp:
    """Mean direction times mean length.

        x_i = theta_i (or theta_i - theta_0 with a base);   u_i = x_i / (|x_i| + eps)
        m = sum_i w_i u_i;   theta = (m / |m|) sum_i w_i |x_i|   (+ theta_0)

    The published method goes on to a tangent step at m, but the projections of the u_i sum to zero there, so
    the step does nothing and is left out; `karcher` takes the steps that the idea asks for. x_i are whole
    flattened tensors. Where the directions cancel (|m| <= eps) no mean direction exists and the result is sum_i
    w_i x_i, as mergekit has it for two models (for more it stops). Zero tensors have no direction. One expert
    is returned as it is.
    """

    weight: tuple[float, ...] = per_expert(1.0, doc="coefficient of each expert")
    normalize_weights: bool = shared(True, doc="divide the weights by their sum")
    eps: float = shared(
        0.0, low=0.0, doc="added to lengths, and the length below which a mean direction is none"
    )

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Combine the experts, or their task vectors."""
        if len(experts) == 1:
            return experts[0]
        weights = normalized(self.weight) if self.normalize_weights else list(self.weight)
        vectors = list(experts) if base is None else [e - base for e in experts]
        arguments: list[Number] = [self.eps, *weights, *upper_triangle(vectors)]
        coefficients = solve(multislerp_coefficients, arguments, len(vectors))
        if base is None:
            return span_combination(vectors, coefficients)
        return base + linear_combination(vectors, coefficients)


def multislerp_coefficients(eps: Any, *numbers: Any) -> list[Any]:
    """Coefficients of the vectors from N weights and the upper triangle of their Gram matrix."""
    n = vectors_described(len(numbers))
    weights, products = numbers[:n], symmetric(n, numbers[n:])
    lengths = [root(products[i][i]) for i in range(n)]
    shares = [scalars.divide(w, length + eps) for w, length in zip(weights, lengths, strict=True)]
    squared = total([shares[i] * shares[j] * products[i][j] for i in range(n) for j in range(n)])
    mean_length = total([w * length for w, length in zip(weights, lengths, strict=True)])
    floor = NO_DIRECTION * total([abs(w) for w in weights])
    cancelled = (squared <= eps * eps) | (squared <= floor * floor)
    scale = mean_length / root(scalars.where(cancelled, 1.0, squared))
    return [scalars.where(cancelled, w, s * scale) for w, s in zip(weights, shares, strict=True)]
