"""The trust region of task arithmetic: no task vector may move what the loss of another task depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.graph import Site, Value, above, add_all, largest_share, where
from weightsmith.methods.parts.modifiers import displaced, modifier
from weightsmith.methods.parts.registry import Base, MeasuredOn, shared
from weightsmith.methods.parts.task_vectors import task_vectors


def drop_parameter() -> Any:
    """The share of elements outside."""
    return shared(
        0.01,
        low=0.0,
        high=1.0,
        doc="share of the elements that lie outside of the trust region (1 less the authors' quantile, 0.99)",
    )


def region_scope_parameter() -> Any:
    """Over what the share is meant."""
    return shared("model", choices=("model", "tensor"), doc="over what the share is meant")


def outside(
    deltas: Sequence[Value], gradients: Sequence[Value], drop: float, scope: str, site: Site
) -> Value | None:
    """Mask of the floor(drop N) elements whose Omega is largest (see `TrustRegion`); None where there are none.

    An element of Omega = 0 conflicts with nothing, and lies inside however large the share.
    """
    if len(deltas) < 2 or drop <= 0.0:
        return None
    sizes = [abs(delta) for delta in deltas]
    others = [add_all([size for j, size in enumerate(sizes) if j != i]) for i in range(len(deltas))]
    omega = add_all([g * other for g, other in zip(gradients, others, strict=True)])
    return above(omega, largest_share(omega, drop, site.over(scope, "trust region", None, drop)))


@modifier(
    "trust_region",
    title="Trust region of task arithmetic",
    paper="Sun et al., ICLR 2025, arXiv:2501.15065",
    base=Base.REQUIRED,
    statistics=("gradients:absolute",),
    measured_on=MeasuredOn.BASE_BY_EXPERT,
)
@dataclass(frozen=True, slots=True)
class TrustRegion:
    """Task vectors without those elements with which they would change each other's losses most.

        Omega = sum_i g_i sum_{j != i} |tau_j|      g_i = E_x |dL_i(x) / d theta| at the base, over the data of task i
        tau'_i = 0 where Omega is among the floor(drop N) largest, tau_i elsewhere

    N counts the elements of the model, or of the tensor (scope), as far as there are statistics; tensors without them
    stay as they are. `method tatr` is task arithmetic with this region.
    """

    drop: float = drop_parameter()
    scope: str = region_scope_parameter()

    def modify(self, base: Value | None, experts: Sequence[Value], site: Site) -> list[Value]:
        """Take every task vector out of the elements outside."""
        base, deltas = task_vectors(base, experts)
        gradients = [s.value for s in site.statistics]
        mask = outside(deltas, gradients, self.drop, self.scope, site) if gradients else None
        if mask is None:
            return list(experts)
        return [
            displaced(base, where(mask, 0.0, delta), where(mask, base, expert))
            for expert, delta in zip(experts, deltas, strict=True)
        ]
