"""Model Stock: how far to go from the base towards the mean of the experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.graph import Scope, Site, Value, add_all, apply, scalars
from weightsmith.methods.parts.registry import Base, method, shared
from weightsmith.methods.parts.span import root, symmetric, total, upper_triangle

# 1 + (N - 1) c up to which t is not told from its pole: cosines of float32 numbers are no more exact.
_POLE = 1e-6


@method(
    "model_stock",
    title="Model Stock",
    paper="Jang et al., ECCV 2024, arXiv:2403.19522",
    base=Base.REQUIRED,
    experts=(2, None),
    presets={"mergekit": {"bounded": False, "smallest_norm_product": 1e-6}},
    cost="O(N^2 m n)",
)
@dataclass(frozen=True, slots=True)
class ModelStock:
    """Move from the base towards the mean of N fine-tuned models, as far as they agree.

        d_i = theta_i - theta_0;   c = mean over pairs of <d_i, d_j> / (|d_i| |d_j|)
        t = N c / (1 + (N - 1) c);   theta = theta_0 + t (1/N) sum_i d_i

    Per tensor, or per row (last axis) with `filter_wise`; a 1-d tensor is one row. The derivation assumes one
    common angle between 0 and 90 degrees, so c is bounded to [0, 1] and t lies in [0, 1]; mergekit does not
    bound it, and extrapolates away from experts that disagree. Even then (bounded: false) the base stays where
    1 + (N - 1) c <= 1e-6: there t has its pole, which peers' rounding turns into ratios of 1e16, and below it are
    angles that no N vectors have in common, which mean: angle gives for four numbers of two signs. A pair with a
    zero d_i has cosine 0. mergekit divides by max(|d_i| |d_j|, 1e-6) instead, which pulls tensors with small deltas
    to the base. `mean: angle` averages the angles and not their cosines.
    """

    filter_wise: bool = shared(False, doc="one t per row instead of one per tensor")
    bounded: bool = shared(True, doc="bound the cosine to [0, 1]")
    mean: str = shared("cosine", choices=("cosine", "angle"), doc="what is averaged over the pairs")
    smallest_norm_product: float = shared(
        0.0, low=0.0, doc="lower bound of |d_i| |d_j|; 0 for none"
    )

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Move from the base towards the mean of the experts."""
        assert base is not None
        deltas = [e - base for e in experts]
        rule = StockRatio(len(experts), self.bounded, self.mean, self.smallest_norm_product)
        scope = Scope.ROW if self.filter_wise else Scope.TENSOR
        return base + add_all(deltas) * apply(rule, *upper_triangle(deltas, scope))


@dataclass(frozen=True, slots=True)
class StockRatio:
    """t / N from the upper triangle of the Gram matrix of the deltas."""

    n: int
    bounded: bool
    mean: str
    smallest_norm_product: float

    def __call__(self, *triangle: Any) -> Any:
        """Interpolation ratio, divided by the number of experts."""
        products = symmetric(self.n, triangle)
        lengths = [root(products[i][i]) for i in range(self.n)]
        pairs = [(i, j) for i in range(self.n) for j in range(i + 1, self.n)]
        cosines = [self._cosine(products[i][j], lengths[i] * lengths[j]) for i, j in pairs]
        c = self._mean(cosines)
        if self.bounded:
            c = scalars.clamp(c, 0.0, 1.0)
        denominator = 1.0 + (self.n - 1) * c
        singular = denominator <= _POLE
        return scalars.where(singular, 0.0, c / scalars.where(singular, 1.0, denominator))

    def _cosine(self, product: Any, norms: Any) -> Any:
        floored = scalars.where(
            norms < self.smallest_norm_product, self.smallest_norm_product, norms
        )
        return scalars.clamp(scalars.divide(product, floored), -1.0, 1.0)

    def _mean(self, cosines: list[Any]) -> Any:
        if self.mean == "cosine":
            return total(cosines) / len(cosines)
        return scalars.cos(total([scalars.acos(c) for c in cosines]) / len(cosines))
