"""Task arithmetic in the trust region, measured or without data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.graph import Site, Value, linear_combination, where
from weightsmith.methods.modifying.trust_region import (
    drop_parameter,
    outside,
    region_scope_parameter,
)
from weightsmith.methods.parts.registry import Base, MeasuredOn, method, per_expert, shared
from weightsmith.methods.parts.task_vectors import task_vectors


@dataclass(frozen=True, slots=True)
class TrustRegionArithmetic:
    """The parameters of both, and what they share."""

    weight: tuple[float, ...] = per_expert(1.0, doc="coefficient of each task vector")
    drop: float = drop_parameter()
    scope: str = region_scope_parameter()
    scale: float = shared(0.3, key="lambda", doc="coefficient of the sum")

    def merged(
        self, base: Value, deltas: Sequence[Value], gradients: Sequence[Value], site: Site
    ) -> Value:
        """The base and the sum of task vectors inside the region."""
        total = linear_combination(deltas, [w * self.scale for w in self.weight])
        mask = outside(deltas, gradients, self.drop, self.scope, site) if gradients else None
        return base + (total if mask is None else where(mask, 0.0, total))


@method(
    "tatr",
    title="TATR (task arithmetic in the trust region)",
    paper="Sun et al., ICLR 2025, arXiv:2501.15065",
    base=Base.REQUIRED,
    statistics=("gradients:absolute",),
    measured_on=MeasuredOn.BASE_BY_EXPERT,
    cost="O(N^2 m n)",
    generalises=("task_arithmetic",),
)
@dataclass(frozen=True, slots=True)
class Tatr(TrustRegionArithmetic):
    """Sum of task vectors but for the elements with which they would change each other's losses most.

        Omega = sum_i g_i sum_{j != i} |tau_j|      g_i = E_x |dL_i(x) / d theta| at the base, over the data of task i
        theta = theta_0 + lambda sum_i w_i tau_i    where Omega is not among the floor(drop N) largest, theta_0 there

    The g_i are the mean magnitudes of gradients of single items, collected from the base over the data of each expert
    (authors: up to 128 items) and named at that expert. N counts the elements of the model with statistics, or of the
    tensor (scope); tensors without statistics lie inside. An element of Omega = 0 does, too. The defaults are those of
    FusionBench: quantile 0.99 of the model, lambda 0.3. The region goes with other methods as modifier `trust_region`.
    """

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Add what lies inside the region."""
        base, deltas = task_vectors(base, experts)
        return self.merged(base, deltas, [s.value for s in site.statistics], site)


@method(
    "tatr_zero_shot",
    title="TATR without data",
    paper="Sun et al., ICLR 2025, arXiv:2501.15065",
    base=Base.REQUIRED,
    cost="O(N^2 m n)",
    generalises=("task_arithmetic",),
)
@dataclass(frozen=True, slots=True)
class TatrZeroShot(TrustRegionArithmetic):
    """`tatr` with task vectors in the place of gradients: training moved most what the loss depends on most.

        Omega = sum_i |tau_i| sum_{j != i} |tau_j|
        theta = theta_0 + lambda sum_i w_i tau_i    where Omega is not among the floor(drop N) largest, theta_0 there

    The authors' variant without exemplars. N counts the elements of the model, or of the tensor (scope).
    """

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Add what lies inside the region."""
        base, deltas = task_vectors(base, experts)
        return self.merged(base, deltas, [abs(delta) for delta in deltas], site)
