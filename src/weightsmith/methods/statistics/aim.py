"""Activation-informed merging: a merge stays nearer to the base in the channels that the base uses most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.graph import Site, Value, apply, linear_combination, peak, scalars
from weightsmith.methods.parts.registry import Base, MeasuredOn, method, per_expert, shared
from weightsmith.methods.parts.task_vectors import lambda_parameter, task_vectors


@method(
    "aim",
    title="AIM (activation-informed merging)",
    paper="Heyrani Nobari et al., 2025, arXiv:2502.02421",
    base=Base.REQUIRED,
    statistics=("channels:input_magnitude",),
    measured_on=MeasuredOn.BASE,
    cost="O(N m n)",
    generalises=("task_arithmetic",),
)
@dataclass(frozen=True, slots=True)
class Aim:
    """A merge whose changes are relaxed towards the base, the more the larger the base's activations are.

        a_j = E |x_j| / max_k E |x_k|                       x: inputs of the base at this weight, channel by channel
        theta = theta_0 + (1 - a_j (1 - omega)) tau         elementwise, j the input channel of the element
        tau = lambda sum_i w_i tau_i

    As a step of `then:`, `- {aim: {omega: 0.4}, statistics: FILE}`, tau is the change of whatever was merged. As a
    method it relaxes the sum of task vectors, and the file is named at the base among the models. omega 1 changes
    nothing, omega 0 leaves the base's weights at the most active channel; the paper tries 0.2 to 0.6, its code has
    0.4. Norms are relaxed element by element. Tensors without statistics (embeddings, heads tied to them, biases) stay
    as merged. The authors' code adds up means of batches, with padding among them; here means are over all rows.
    """

    omega: float = shared(
        0.4, low=0.0, high=1.0, doc="share of the change that is left at the most active channel"
    )
    weight: tuple[float, ...] = per_expert(1.0, doc="coefficient of each task vector")
    scale: float = lambda_parameter()

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Relax the sum of the task vectors."""
        base, deltas = task_vectors(base, experts)
        weights = [w * self.scale for w in self.weight]
        if not site.statistics or self.omega == 1.0:
            return experts[0] if weights == [1.0] else base + linear_combination(deltas, weights)
        activity = site.statistics[0].value
        relaxed = 1.0 - activity * apply(_over, 1.0 - self.omega, peak(activity))
        return base + linear_combination(deltas, weights) * relaxed


def _over(strength: Any, largest: Any) -> Any:
    """strength / largest; 0 where no channel was active."""
    is_active = largest > 0
    return scalars.where(is_active, strength / scalars.where(is_active, largest, 1.0), 0.0)
