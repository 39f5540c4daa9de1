"""Metrics-Weighted Averaging: checkpoints of one run weighted by how well each of them does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.errors import RecipeError
from weightsmith.graph import Site, Value
from weightsmith.methods.averages.linear import weighted_average
from weightsmith.methods.parts.curvature import softmax
from weightsmith.methods.parts.registry import REQUIRED, Base, method, per_expert, shared


@method(
    "metrics_weighted",
    title="Metrics-Weighted Averaging",
    paper="Metrics-Weighted Averaging, 2025, arXiv:2504.18580",
    base=Base.IGNORED,
    statistics=("metrics",),
    cost="O(N m n)",
    generalises=("soup",),
)
@dataclass(frozen=True, slots=True)
class MetricsWeighted:
    """Average of checkpoints with weights from one number for each, such as its loss.

        theta = sum_i w_i theta_i
        power       w_i = L_i^-p / sum_j L_j^-p  (loss)       w_i = t_i^p / sum_j t_j^p  (score, step)
        softmax     w_i = exp(-p L_i) / sum_j exp(-p L_j)     w_i = exp(p t_i) / sum_j exp(p t_j)

    A loss is better when smaller; a score and a number of training steps when larger. p = 0 gives the uniform soup, a
    large p the best (or last) checkpoint. The paper says "one penalty factor" without its formula: these are the
    families that fit its words. The numbers stand in the recipe (`metric`), or in a metrics file of each model
    (`statistics:`) under the name that `by` gives. Factors of adapters are averaged factor by factor, which is not
    the average of their products. Raises RecipeError for numbers <= 0 with normalization: power. One shape; exact
    where all checkpoints agree.
    """

    metric: tuple[float, ...] = per_expert(REQUIRED, doc="the number that each expert is judged by")
    by: str = shared(
        "loss",
        choices=("loss", "score", "step"),
        doc="what the numbers are: a loss counts reversed",
    )
    normalization: str = shared(
        "power", choices=("power", "softmax"), doc="how numbers become weights that sum to 1"
    )
    power: float = shared(1.0, key="penalty", low=0.0, doc="exponent or factor p")

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Average the experts; the base plays no part."""
        return weighted_average(experts, self.weights())

    def weights(self) -> list[float]:
        """w_i, which sum to 1."""
        sign = -1.0 if self.by == "loss" else 1.0
        if self.normalization == "softmax":
            return softmax([sign * number for number in self.metric], self.power)
        if min(self.metric) <= 0.0:
            raise RecipeError(
                f"metrics_weighted: the metric {min(self.metric):g} has no power; give numbers above 0, or set "
                "`normalization: softmax`."
            )
        return softmax([sign * math.log(number) for number in self.metric], self.power)
