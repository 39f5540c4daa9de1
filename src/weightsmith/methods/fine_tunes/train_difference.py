"""Train difference: add what one fine-tune learned to another, as if it had been trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.graph import Site, Value, where
from weightsmith.methods.parts.registry import Base, method, shared


@method(
    "train_difference",
    title="Train difference",
    paper="hako-mikan and others, 2023, sd-webui-supermerger, trainDifference; sd-mecha, train_difference_mask",
    base=Base.REQUIRED,
    experts=(2, 2),
)
@dataclass(frozen=True, slots=True)
class TrainDifference:
    """Add the second fine-tune's change to the first, most where the two are far apart.

        theta = theta_A + alpha gain s (theta_B - theta_0)
        s = |theta_B - theta_A| / (|theta_B - theta_A| + |theta_B - theta_0|),   0 where both are 0

    Elementwise. A is the first model, which is trained on, B the second, and the base what B was trained from. Where A
    is at B already nothing is added; where A is the base s is 1/2, and much of the change is lost, which gain makes up
    for: 1.8 is the factor of both sources. alpha = 1 is their default; alpha = 0 gives A.
    """

    alpha: float = shared(1.0, doc="how much is added")
    gain: float = shared(1.8, doc="factor that makes up for s")

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Train the first expert on the second's change."""
        assert base is not None
        first, second = experts
        if self.alpha == 0.0:
            return first
        change, apart = second - base, abs(second - first)
        distances = apart + abs(change)
        share = apart / where(distances.equals(0.0), 1.0, distances)
        return first + change * share * (self.alpha * self.gain)
