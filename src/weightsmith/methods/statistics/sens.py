"""Sens-Merging: task vectors weighed layer by layer, by what each task's loss depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.graph import Scalar, Scope, Site, Value, dot, linear_combination, scalars, solve
from weightsmith.methods.averages.linear import normalized
from weightsmith.methods.parts.registry import Base, method, per_expert, shared
from weightsmith.methods.parts.span import root
from weightsmith.methods.parts.task_vectors import lambda_parameter, merge_vectors, task_vectors


@method(
    "sens",
    title="Sens-Merging (sensitivity-guided coefficients)",
    paper="Liu et al., ACL Findings 2025, arXiv:2502.12420",
    base=Base.REQUIRED,
    statistics=("gradients:absolute",),
    cost="O(N m n), and as much reading again for the gradients",
    generalises=("task_arithmetic",),
    presets={
        "l2s_1.5b": {"lambda": 0.4, "temperature": 3.0},
        "l2s_7b": {"lambda": 0.7, "temperature": 2.0},
        "l2s_14b": {"lambda": 0.8, "temperature": 6.0},
    },
    about_presets=dict.fromkeys(
        ("l2s_1.5b", "l2s_7b", "l2s_14b"),
        "long-to-short reasoning models of that size, arXiv:2503.20641",
    ),
)
@dataclass(frozen=True, slots=True)
class Sens:
    """Task vectors with coefficients from the sensitivity of each layer and from how far models are from each other.

        s_i^l = sum_{theta in layer l} |theta_i| E_x |dL_i(x) / d theta|       on expert i, over its own data
        alpha_i^l = s_i^l / ||s_i||_2;   sigma_i^l = softmax_i(alpha_i^l t_i / T);   t_i = transfer_i / sum_j transfer_j
        theta = theta_0 + lambda sum_i w_i N sigma_i^l tau_i

    `transfer` is what the paper measures across tasks: the mean distance ||z_i - z_j||_2 of an expert's logits from
    those of each other expert j on that one's data, summed over j (`weightsmith.statistics.logit_distances`). A larger
    distance gives a larger coefficient, as in a public implementation of the method; the authors gave out no code.
    Without it all t_i are 1 / N. s is the mean over items of sum |theta g|, as there. Layers are the blocks of a
    stack; outside of stacks each tensor is one by itself. The temperature is not known of the paper: 1 here, 2 to 6 in
    the presets. Tensors without statistics have their layer's coefficients, or 1. `reduce: ties` elects signs of the
    weighted task vectors and takes the mean of those that agree.
    """

    temperature: float = shared(
        1.0, low=1e-6, doc="T of the softmax over experts; large: equal coefficients"
    )
    transfer: tuple[float, ...] = per_expert(
        1.0, low=0.0, doc="how far an expert is from the others on their data, in any unit"
    )
    weight: tuple[float, ...] = per_expert(1.0, doc="further coefficient of each task vector")
    reduce: str = shared("sum", choices=("sum", "ties"), doc="how weighted task vectors become one")
    scale: float = lambda_parameter()

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Weigh the task vectors for this layer and add them."""
        base, deltas = task_vectors(base, experts)
        sums = [self._sensitivity(expert, i, site) for i, expert in enumerate(experts)]
        rule = SensitivityShares(tuple(normalized(self.transfer)), self.temperature)
        shares = solve(rule, [number for pair in sums for number in pair], len(experts))
        factors = [share * w for share, w in zip(shares, self.weight, strict=True)]
        if self.reduce == "sum":
            return base + linear_combination(deltas, [f * self.scale for f in factors])
        weighed = [delta * factor for delta, factor in zip(deltas, factors, strict=True)]
        even = [1.0] * len(weighed)
        return base + self.scale * merge_vectors(
            weighed, even, site=site, normalize="absolute", zero_sum="zero"
        )

    def _sensitivity(self, expert: Value, number: int, site: Site) -> tuple[Scalar, Scalar]:
        """s_i^l of the tensor's layer, and ||s_i||^2: the sum over the model of |theta| g s^l is that of (s^l)^2."""
        size = abs(expert)
        gradient = site.statistics[number].value if site.statistics else expert * 0.0
        extent = (
            Scope.TENSOR
            if site.layer is None
            else site.over_layer(site.layer, "sensitivity", number)
        )
        own = dot(size, gradient, extent)
        return own, dot(size * own, gradient, site.over_model("squared sensitivities", number))


@dataclass(frozen=True, slots=True)
class SensitivityShares:
    """N sigma_i of one layer from s_1, ||s_1||^2, ..., s_N, ||s_N||^2."""

    transfer: tuple[float, ...]
    temperature: float

    def __call__(self, *numbers: Any) -> list[Any]:
        """N factors whose mean is 1."""
        scores = [
            scalars.divide(own, root(square)) * t / self.temperature
            for own, square, t in zip(numbers[::2], numbers[1::2], self.transfer, strict=True)
        ]
        # From the largest, so that no exponential leaves the range of float64.
        largest = scores[0]
        for score in scores[1:]:
            largest = scalars.where(score > largest, score, largest)
        raised = [scalars.exp(score - largest) for score in scores]
        whole: Any = 0.0
        for x in raised:
            whole = whole + x
        return [x * len(raised) / whole for x in raised]
