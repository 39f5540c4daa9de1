"""TIES-Merging: trim, elect sign, merge disjointly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.methods.registry import REQUIRED, Base, method, per_expert, shared
from weightsmith.tensors.graph import Scope, Site, Value, above, add_all, largest_share, sign, where


@method(
    "ties",
    title="TIES-Merging",
    paper="Yadav et al., NeurIPS 2023, arXiv:2306.01708",
    base=Base.REQUIRED,
    presets={"mergekit": {"weight": REQUIRED, "density": 1.0, "trim_scope": "tensor", "zero_sum": "positive"}},
)
@dataclass(frozen=True, slots=True)
class Ties:
    """Placeholder example of an order-statistic method; the methods' author finishes it."""

    weight: tuple[float, ...] = per_expert(1.0, doc="coefficient of each task vector, before the election")
    density: tuple[float, ...] = per_expert(0.2, low=0.0, high=1.0, doc="share of entries kept")
    normalize: bool = shared(True, doc="divide by the weights of the experts that agree")
    scale: float = shared(1.0, key="lambda", doc="coefficient of the merged task vector")
    trim_scope: str = shared("model", choices=("tensor", "model"), doc="where the trim threshold is measured")
    zero_sum: str = shared("zero", choices=("zero", "positive"), doc="elected sign of entries that cancel exactly")

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        assert base is not None
        scope = Scope.MODEL if self.trim_scope == "model" else Scope.TENSOR
        deltas = [expert - base for expert in experts]
        trimmed = [trim(d, density, scope) for d, density in zip(deltas, self.density, strict=True)]
        weighted = [d * w for d, w in zip(trimmed, self.weight, strict=True)]
        elected = sign(add_all(weighted))
        agree = [sign(d).equals(elected) for d in weighted]
        mixed = add_all([where(a, d, 0.0) for a, d in zip(agree, weighted, strict=True)])
        if self.normalize:
            weights = add_all([where(a, w, 0.0) for a, w in zip(agree, self.weight, strict=True)])
            mixed = mixed / where(weights.equals(0.0), 1.0, weights)
        return base + mixed * self.scale


def trim(delta: Value, density: float, scope: Scope) -> Value:
    """Keep the `density` share of entries with the largest magnitude, zero the rest."""
    if density >= 1.0:
        return delta
    magnitude = abs(delta)
    return where(above(magnitude, largest_share(magnitude, density, scope)), delta, 0.0)
