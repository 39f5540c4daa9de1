"""Clamp: keep the numbers of a merged model within the range of what it is stored in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith import graph
from weightsmith.graph import Site, Value
from weightsmith.methods.parts.registry import Base, method, shared


@method(
    "clamp",
    title="Clamp",
    paper="IEEE Std 754-2019: the largest finite number of binary16 is 65504",
    base=Base.IGNORED,
    experts=(1, 1),
)
@dataclass(frozen=True, slots=True)
class Clamp:
    """One model with every number within [-limit, limit]; a step of `then:`, after which float16 does not overflow.

        theta = min(max(theta_1, -limit), limit)

    Elementwise. The default is the largest number of float16. NaN stays NaN.
    """

    limit: float = shared(65504.0, low=0.0, doc="largest magnitude that is left")

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Clamp the expert; the base plays no part."""
        return graph.clamp(experts[0], -self.limit, self.limit)
