"""Task arithmetic: add and subtract what fine-tuning changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.methods.registry import REQUIRED, Base, method
from weightsmith.methods.task_vectors import (
    density_parameter,
    fuse,
    int8_mask_parameter,
    lambda_parameter,
    normalize_parameter,
    rescale_parameter,
    task_vectors,
    weight_parameter,
)
from weightsmith.tensors.graph import Value
from weightsmith.tensors.site import Site


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
    the weights' sum, unless that is below 1e-8. density and rescale are accepted from mergekit recipes, where
    they do nothing either.
    """

    weight: tuple[float, ...] = weight_parameter()
    density: tuple[float, ...] = density_parameter(
        1.0, "accepted from mergekit recipes; has no effect"
    )
    normalize: str = normalize_parameter("none")
    rescale: str = rescale_parameter("none", random=False)
    scale: float = lambda_parameter()
    int8_mask: bool = int8_mask_parameter()

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Add the weighted task vectors to the base."""
        base, deltas = task_vectors(base, experts)
        return fuse(
            base, deltas, self.weight, site=site, normalize=self.normalize, scale=self.scale
        )
