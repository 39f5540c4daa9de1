"""TALL masks: where one task lives in the sum of all task vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.graph import Site, Value, where
from weightsmith.methods.parts.multi_task import (
    PARTS,
    mask_density_parameter,
    mask_lambda_parameter,
    mask_rule_parameter,
    multi_task_vector,
    part_parameter,
    task_mask,
    task_number,
    task_parameter,
    trim_parameter,
    vector_parameter,
)
from weightsmith.methods.parts.registry import Base, method
from weightsmith.methods.parts.task_vectors import task_vectors


@method(
    "tall_masks",
    title="TALL masks",
    paper="Wang et al., ICML 2024, arXiv:2405.07813",
    base=Base.REQUIRED,
    presets={"magnitude": {"masks": "magnitude"}},
)
@dataclass(frozen=True, slots=True)
class TallMasks:
    """One task's weights, rebuilt from the multi-task vector and that task's mask.

        tau = sum_i tau_i                              (vector ties: trimmed to 0.2 of the model, elected, summed)
        m_t = [ |tau_t| > lambda_t |tau - tau_t| ]     one bit per element
        theta_t = theta_0 + m_t tau

    All of theta_0, tau and the masks of N tasks take 64 + N bits per float32 weight, N + 1 checkpoints 32 (N + 1):
    `weightsmith bundle create` stores them so. lambda_t comes from {0.2, ..., 0.6} by validation in the paper, the
    default is the middle; 1 minimises |m_t tau - tau_t| of every element. lambda_t = 0 selects all that the task
    changed. One expert, and tasks that changed disjoint elements, are rebuilt exactly, up to the rounding of
    theta_0 + (theta_t - theta_0). Preset `magnitude` is the paper's baseline, the tenth of the model with the
    largest |tau_t|. A peer's version takes task vectors for weights in m_t, which gives other masks.
    Elementwise, of model scope with vector ties or masks magnitude; cost O(N) per weight.
    """

    task: str = task_parameter()
    mask_lambda: tuple[float, ...] = mask_lambda_parameter()
    vector: str = vector_parameter()
    density: float = trim_parameter()
    masks: str = mask_rule_parameter()
    mask_density: float = mask_density_parameter()
    part: str = part_parameter(PARTS)

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Mask the multi-task vector, and add to the base."""
        base, deltas = task_vectors(base, experts)
        together = multi_task_vector(deltas, self.vector, self.density, site)
        if self.part == "shared":
            return together
        t = task_number(self.task, len(experts), site, "tall_masks")
        mask = task_mask(
            deltas[t],
            together,
            self.masks,
            self.mask_lambda[t],
            self.mask_density,
            site.over_model("mask", t, self.mask_density),
        )
        return mask if self.part == "mask" else base + where(mask, together, 0.0)
