"""Task arithmetic: add and subtract what fine-tuning changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.graph import Site, Value
from weightsmith.methods.parts.registry import REQUIRED, Base, method
from weightsmith.methods.parts.task_vectors import (
    fuse,
    lambda_parameter,
    normalize_parameter,
    task_vectors,
    weight_parameter,
)


@method(
    "task_arithmetic",
    title="Task arithmetic",
    paper="Ilharco et al., ICLR 2023, arXiv:2212.04089",
    base=Base.REQUIRED,
    presets={"mergekit": {"weight": REQUIRED}},
    generalises=(
        "soup",
        "wise_ft",
        "expo",
    ),
)
@dataclass(frozen=True, slots=True)
class TaskArithmetic:
    """Add a combination of task vectors to the base.

        theta = theta_0 + lambda sum_i w_i (theta_i - theta_0)

    Elementwise; N + 1 reads. Negative weights remove a skill. The paper tunes one lambda per merge (about 0.3
    for eight tasks); the default of 1 with one expert is that expert. With `normalize` the sum is divided by
    the weights' sum, unless that is below 1e-8.
    """

    weight: tuple[float, ...] = weight_parameter()
    normalize: str = normalize_parameter("none")
    scale: float = lambda_parameter()

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Add the weighted task vectors to the base."""
        base, deltas = task_vectors(base, experts)
        return fuse(
            base, deltas, self.weight, site=site, normalize=self.normalize, scale=self.scale
        )
