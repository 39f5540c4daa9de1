"""Consensus merging: task arithmetic without what serves fewer than k tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.graph import Site, Value, add_all, where
from weightsmith.methods.parts.multi_task import (
    mask_density_parameter,
    mask_lambda_parameter,
    mask_rule_parameter,
    multi_task_vector,
    task_mask,
    trim_parameter,
    vector_parameter,
)
from weightsmith.methods.parts.registry import Base, method, shared
from weightsmith.methods.parts.task_vectors import lambda_parameter, task_vectors


@method(
    "consensus",
    title="Consensus merging",
    paper="Wang et al., ICML 2024, arXiv:2405.07813",
    base=Base.REQUIRED,
    presets={"ties": {"vector": "ties"}},
    generalises=("task_arithmetic",),
)
@dataclass(frozen=True, slots=True)
class Consensus:
    """The multi-task vector where at least k of its tasks use it.

        tau = sum_i tau_i                              (vector ties: trimmed to 0.2 of the model, elected, summed)
        m_t = [ |tau_t| > lambda_t |tau - tau_t| ]
        theta = theta_0 + lambda [ sum_t m_t >= k ] tau

    k = 2 (the paper's) drops elements that no task uses ("catastrophic") and that one uses ("selfish"); k = 1 drops
    the first kind only, k = 0 is task arithmetic, k > N the base. lambda is searched from 0.1 to 1 and lambda_t
    from 0.2 to 0.6 on validation data in the paper; the defaults are 1 and 0.4. Elementwise, of model scope with
    vector ties or masks magnitude; cost O(N) per weight.
    """

    k: int = shared(2, low=0, doc="number of tasks that must use an element for it to be kept")
    mask_lambda: tuple[float, ...] = mask_lambda_parameter()
    vector: str = vector_parameter()
    density: float = trim_parameter()
    masks: str = mask_rule_parameter()
    mask_density: float = mask_density_parameter()
    scale: float = lambda_parameter()

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Count the tasks of every element, and add what enough of them use."""
        base, deltas = task_vectors(base, experts)
        together = multi_task_vector(deltas, self.vector, self.density, site)
        if self.k > 0:
            together = where(self._users(deltas, together, site) >= float(self.k), together, 0.0)
        return base + (together if self.scale == 1.0 else together * self.scale)

    def _users(self, deltas: Sequence[Value], together: Value, site: Site) -> Value:
        masks = [
            task_mask(
                delta,
                together,
                self.masks,
                mask_lambda,
                self.mask_density,
                site.over_model("mask", i, self.mask_density),
            )
            for i, (delta, mask_lambda) in enumerate(zip(deltas, self.mask_lambda, strict=True))
        ]
        return add_all([where(mask, 1.0, 0.0) for mask in masks])
