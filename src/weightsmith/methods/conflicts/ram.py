"""RAM: keep what only one expert changed, average what several changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.graph import Number, Site, Value, add_all, apply, count, maximum, scalars, where
from weightsmith.methods.parts.registry import Base, method, shared
from weightsmith.methods.parts.task_vectors import task_vectors

_PAPER = "Reinforced Agent Merging, 2026, arXiv:2601.13572"
_EPSILON = "|tau| up to which an element counts as unchanged"


@method("ram", title="RAM", paper=_PAPER, base=Base.REQUIRED, presets={"mergekit": {}})
@dataclass(frozen=True, slots=True)
class Ram:
    """Sum of unique changes, mean of shared ones.

        a_i = [|tau_i| > epsilon];   c = sum_i a_i
        theta = theta_0 + sum_i a_i tau_i / max(c, 1)

    Elementwise. Changes up to epsilon = 1e-5 (the paper's value) are dropped. One expert keeps its larger
    changes.
    """

    epsilon: float = shared(1e-5, low=0.0, doc=_EPSILON)

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Average each element over the experts that changed it."""
        base, deltas = task_vectors(base, experts)
        return base + mean_of_active(deltas, self.epsilon, [1.0] * len(deltas))


@method(
    "ramplus_tl",
    title="RAM+ (tensor-local)",
    paper=_PAPER,
    base=Base.REQUIRED,
    presets={"mergekit": {}},
    generalises=("ram",),
)
@dataclass(frozen=True, slots=True)
class RamPlus:
    """RAM with unique changes amplified in experts that share much.

        rho_i = (shared elements of i) / max(unique elements of i, epsilon)        counted in the tensor
        lambda_i = 1 + r clip(rho_i, 0, alpha)
        theta = theta_0 + (lambda_i tau_i where only i is active, mean of the active tau_i elsewhere)

    An expert without unique elements has an unbounded rho, which the clip takes to alpha.
    """

    r: float = shared(0.1, doc="strength of the amplification")
    alpha: float = shared(0.2, low=0.0, doc="upper bound of the ratio of shared to unique")
    epsilon: float = shared(1e-5, low=0.0, doc=_EPSILON)

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Average shared elements, amplify unique ones."""
        base, deltas = task_vectors(base, experts)
        active = [abs(d) > self.epsilon for d in deltas]
        contributors = add_all([where(a, 1.0, 0.0) for a in active])
        unique = contributors.equals(1.0)
        gain = Amplification(self.r, self.alpha, self.epsilon)
        factors = [apply(gain, count(a & ~unique), count(a & unique)) for a in active]
        return base + mean_of_active(deltas, self.epsilon, factors)


@dataclass(frozen=True, slots=True)
class Amplification:
    """lambda from the numbers of shared and unique elements."""

    r: float
    alpha: float
    epsilon: float

    def __call__(self, shared_elements: Any, unique_elements: Any) -> Any:
        """1 + r clip(shared / max(unique, epsilon), 0, alpha)."""
        unbounded = unique_elements == 0
        floored = scalars.where(unbounded, max(self.epsilon, 1e-300), unique_elements)
        return 1.0 + self.r * scalars.clamp(shared_elements / floored, 0.0, self.alpha)


def mean_of_active(deltas: Sequence[Value], epsilon: float, factors: Sequence[Number]) -> Value:
    """Mean of the task vectors above epsilon at each element; where there is one, it times its factor."""
    active = [abs(d) > epsilon for d in deltas]
    contributors = add_all([where(a, 1.0, 0.0) for a in active])
    sums = add_all([where(a, d, 0.0) for a, d in zip(active, deltas, strict=True)])
    unique = add_all(
        [where(a, d * f, 0.0) for a, d, f in zip(active, deltas, factors, strict=True)]
    )
    return where(contributors.equals(1.0), unique, sums / maximum(contributors, 1.0))
