"""Task arithmetic: add and subtract what fine-tuning changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.graph import Scalar, Site, Value, apply, dot, scalars
from weightsmith.methods.parts.registry import REQUIRED, Base, method, shared
from weightsmith.methods.parts.span import total
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
    presets={"mergekit": {"weight": REQUIRED}, "metagpt": {"coefficients": "energy"}},
    about_presets={
        "metagpt": "MetaGPT's coefficients, each task vector's share of the squared lengths of all (Zhou et al., EMNLP "
        "2024, arXiv:2406.11385)"
    },
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

    With `coefficients: energy` (preset metagpt) the task vectors are c_i tau_i, c_i = ||tau_i||^2 / sum_j ||tau_j||^2
    over the whole model: MetaGPT's minimiser of the sum of the experts' squared distances in output, where networks are
    linear in their weights along task vectors and those orthogonal. The c_i sum to 1; where nothing changed they are 0.
    """

    weight: tuple[float, ...] = weight_parameter()
    normalize: str = normalize_parameter("none")
    scale: float = lambda_parameter()
    coefficients: str = shared(
        "given",
        choices=("given", "energy"),
        doc="what task vectors are multiplied by beside their weights: nothing, or their share of the squared lengths "
        "of all task vectors over the model",
    )

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Add the weighted task vectors to the base."""
        base, deltas = task_vectors(base, experts)
        if self.coefficients == "energy":
            deltas = [d * c for d, c in zip(deltas, energy_shares(deltas, site), strict=True)]
        return fuse(
            base, deltas, self.weight, site=site, normalize=self.normalize, scale=self.scale
        )


def energy_shares(deltas: Sequence[Value], site: Site) -> list[Scalar]:
    """||tau_i||^2 / sum_j ||tau_j||^2 over the model, 0 where all are 0."""
    squares = [dot(d, d, site.over_model("squared length", i)) for i, d in enumerate(deltas)]
    return [apply(_share, square, *squares) for square in squares]


def _share(one: Any, *squares: Any) -> Any:
    return scalars.divide(one, total(squares))
