"""Layer-wise weights: in each layer, experts count by how much of their change lies there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.graph import Site, Value, linear_combination, scalars, solve
from weightsmith.methods.layers.layer_rules import layer_changes, layer_squares
from weightsmith.methods.parts.registry import Base, method, per_expert, shared
from weightsmith.methods.parts.task_vectors import lambda_parameter, task_vectors


@method(
    "layer_importance",
    title="Layer-wise weights by importance",
    paper="the per-layer weights of AdaMerging (Yang et al., ICLR 2024, arXiv:2310.02575), from norms instead of data",
    base=Base.REQUIRED,
)
@dataclass(frozen=True, slots=True)
class LayerImportance:
    """Weigh experts anew in every layer, by the size of what they changed in it.

        theta^l = theta_0^l + lambda sum_i w_i^l tau_i^l
        w_i^l = (g_i c_i^l)^(1/T) / sum_j (g_j c_j^l)^(1/T)
        c_i^l = ||tau_i^l|| / ||theta_0^l|| over all tensors of layer l, scaled to sum to 1 over the layers

    T is the temperature: 1 weighs in proportion, near 0 the most changed expert takes the layer, and a large one
    approaches the average of all that changed it. g_i is the weight that a recipe gives, alike in all layers or as a
    list along the depth. scale_by: expert is the rule above, in which experts of different strength count alike;
    none leaves out the scaling over layers, so that strong ones count more. measure: norm leaves out the division
    by the base. Experts that changed nothing in a layer have weight 0 there. Tensors outside of layers are averaged
    with the weights g_i / sum_j g_j, and so is a layer that nobody changed. Weights given as lists only, without
    a measurement, need no method of their own: `weight` of task_arithmetic takes them.
    """

    weight: tuple[float, ...] = per_expert(1.0, low=0.0, doc="g_i, what an expert counts by itself")
    temperature: float = shared(
        1.0, low=1e-3, high=1e6, doc="T, how evenly a layer is shared among its experts"
    )
    measure: str = shared(
        "relative",
        choices=("relative", "norm"),
        doc="change relative to the base's norm, or as it is",
    )
    scale_by: str = shared(
        "expert",
        choices=("expert", "none"),
        doc="whether an expert's changes are scaled to sum to 1",
    )
    scale: float = lambda_parameter()

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Add the task vectors, weighted for the layer."""
        base, deltas = task_vectors(base, experts)
        n = len(deltas)
        if site.layer is None or n == 1:
            fixed = _normalized(list(self.weight))
            return base + linear_combination(deltas, [w * self.scale for w in fixed])
        rule = LayerWeights(
            n, site.layer, self.temperature, self.measure, self.scale_by == "expert"
        )
        weights = solve(rule, [*self.weight, *layer_squares(base, deltas, site)], n)
        return base + linear_combination(deltas, [w * self.scale for w in weights])


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """w_1, ..., w_N of one layer from g_1, ..., g_N and the squared norms of `layer_squares`."""

    experts: int
    layer: int
    temperature: float
    measure: str
    is_scaled: bool

    def __call__(self, *numbers: Any) -> list[Any]:
        """N weights that sum to 1."""
        given, squares = list(numbers[: self.experts]), numbers[self.experts :]
        changes = layer_changes(squares, self.experts, self.measure, scaled=self.is_scaled)
        strengths = [g * row[self.layer] for g, row in zip(given, changes, strict=True)]
        largest: Any = 0.0
        for s in strengths:
            largest = scalars.where(s > largest, s, largest)
        # Relative to the largest, so that no power leaves the range of float64.
        powers = [_power(scalars.divide(s, largest), 1.0 / self.temperature) for s in strengths]
        whole: Any = 0.0
        for p in powers:
            whole = whole + p
        fallback = _normalized(given)
        return [
            scalars.where(whole > 0, p / scalars.where(whole > 0, whole, 1.0), f)
            for p, f in zip(powers, fallback, strict=True)
        ]


def _power(x: Any, exponent: float) -> Any:
    if exponent == 1.0:
        return x
    positive = x > 0
    return scalars.where(
        positive, scalars.exp(scalars.log(scalars.where(positive, x, 1.0)) * exponent), 0.0
    )


def _normalized(weights: list[Any]) -> list[Any]:
    """Weights divided by their sum; all alike where that is 0."""
    whole: Any = 0.0
    for w in weights:
        whole = whole + w
    return [scalars.divide(w, whole, 1.0 / len(weights)) for w in weights]
