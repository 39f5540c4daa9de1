"""NearSwap: take the expert's weights where they are near, and lean towards them elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.graph import Site, Value, clamp, maximum, where
from weightsmith.methods.parts.registry import REQUIRED, Base, method, shared


@method(
    "nearswap",
    title="NearSwap",
    paper="alchemonaut, 2024, the model card of QuartetAnemoi-70B",
    base=Base.REQUIRED,
    experts=(1, 1),
    presets={"mergekit": {"t": REQUIRED, "smallest_difference": 1e-6}},
)
@dataclass(frozen=True, slots=True)
class NearSwap:
    """Move every weight of the base towards the expert, by at most t.

        lambda = min(t / |theta_1 - theta_0|, 1)
        theta = (1 - lambda) theta_0 + lambda theta_1 = theta_0 + clamp(theta_1 - theta_0, -t, t)

    Elementwise. Weights that differ by t or less are the expert's, bit for bit; t = 0 gives the base. t = 1e-4
    is the value of the model that introduced the method. mergekit divides by max(|theta_1 - theta_0|, 1e-6),
    which differs only for t below 1e-6.
    """

    t: float = shared(1e-4, low=0.0, doc="largest change of a weight")
    smallest_difference: float = shared(
        0.0, low=0.0, doc="lower bound of |theta_1 - theta_0| in lambda"
    )

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Lean from the base towards the expert."""
        assert base is not None
        delta = experts[0] - base
        if self.t >= self.smallest_difference:
            return where(abs(delta) <= self.t, experts[0], base + clamp(delta, -self.t, self.t))
        return base + delta * (self.t / maximum(abs(delta), self.smallest_difference))
