"""MagMax: at every weight, the expert that changed it most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.graph import Site, Value, where
from weightsmith.methods.parts.registry import Base, method, shared
from weightsmith.methods.parts.task_vectors import task_vectors


@method(
    "magmax",
    title="MagMax",
    paper="Marczak et al., ECCV 2024, arXiv:2407.06322",
    base=Base.REQUIRED,
)
@dataclass(frozen=True, slots=True)
class MagMax:
    """The task vector of largest magnitude at each element.

        s = argmax_i |tau_i|  per element, the last of equals;   theta = theta_0 + lambda tau_s

    The experts are fine-tuned one after the other (each from the one before it) or apart; their order matters
    where magnitudes are equal only. lambda = 0.5 is the paper's. One expert gives task arithmetic. Elementwise,
    cost O(N) per weight.
    """

    scale: float = shared(0.5, key="lambda", doc="coefficient of the merged task vector")

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Select, scale, and add to the base."""
        base, deltas = task_vectors(base, experts)
        chosen = deltas[0]
        for delta in deltas[1:]:
            chosen = where(abs(delta) >= abs(chosen), delta, chosen)
        return base + (chosen if self.scale == 1.0 else chosen * self.scale)
