"""Weighted averages of checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.methods.registry import REQUIRED, Base, method, per_expert, shared
from weightsmith.tensors.graph import Site, Value, linear_combination


@method(
    "linear",
    title="Linear (weighted average)",
    paper="Wortsman et al., ICML 2022, arXiv:2203.05482",
    base=Base.IGNORED,
    presets={"mergekit": {"weight": REQUIRED}},
)
@dataclass(frozen=True, slots=True)
class Linear:
    """Weighted average of the experts.

        theta = sum_i w_i theta_i / sum_i w_i        (normalize)
        theta = sum_i w_i theta_i                    (otherwise)

    Experts and result have one shape. Weights that sum to 0 cannot be normalised and are refused.
    """

    weight: tuple[float, ...] = per_expert(1.0, doc="coefficient of each expert")
    normalize: bool = shared(True, doc="divide by the sum of the weights")

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        return linear_combination(experts, normalized(self.weight) if self.normalize else self.weight)


def normalized(weights: Sequence[float]) -> list[float]:
    """Weights divided by their sum; raises RecipeError if they sum to 0."""
    from weightsmith.errors import RecipeError

    total = sum(weights)
    if total == 0:
        raise RecipeError(f"Weights {list(weights)} sum to 0 and cannot be normalised; set normalize: false.")
    return [w / total for w in weights]
