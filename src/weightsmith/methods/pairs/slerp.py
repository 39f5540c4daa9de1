"""Spherical linear interpolation of two models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.graph import Number, Site, Value, dot, solve
from weightsmith.methods.parts.registry import REQUIRED, Base, method, shared
from weightsmith.methods.parts.span import arc_coefficients, cosine, span_combination


@method(
    "slerp",
    title="SLERP",
    paper="Shoemake, SIGGRAPH 1985",
    base=Base.REQUIRED,
    experts=(1, 1),
    presets={"mergekit": {"lerp_above": 0.9995}},
)
@dataclass(frozen=True, slots=True)
class Slerp:
    """Spherical interpolation from the base a (t = 0) to one expert b (t = 1).

        c = <a, b> / (|a| |b|);   omega = arccos c
        theta = [sin((1 - t) omega) a + sin(t omega) b] / sin omega
        theta = (1 - t) a + t b                                         where |c| > lerp_above

    a and b are the whole flattened tensors, unnormalised; c and the coefficients are float64. Vectors on one
    line (antipodes among them) are always interpolated straight. A zero tensor has c = 0. t outside [0, 1] goes
    on along the arc. mergekit interpolates straight above |c| = 0.9995, which is nearly every pair of
    fine-tunes of one base; the default has no such threshold.
    """

    t: float = shared(REQUIRED, doc="position between base and expert; 0 is the base, 1 the expert")
    lerp_above: float = shared(
        1.0, low=0.0, high=1.0, doc="|cosine| above which the arc is taken for straight"
    )

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Interpolate base and expert."""
        assert base is not None
        a, b = base, experts[0]
        numbers: list[Number] = [dot(a, a), dot(b, b), dot(a, b), self.t, self.lerp_above]
        return on_the_nearer(a, b, solve(slerp_coefficients, numbers, 2), self.t)


def slerp_coefficients(aa: Any, bb: Any, ab: Any, t: Any, lerp_above: Any) -> tuple[Any, Any]:
    """Coefficients of a and b from their dot products."""
    return arc_coefficients(cosine(aa, bb, ab), t, lerp_above)


def on_the_nearer(a: Value, b: Value, coefficients: Sequence[Any], t: float) -> Value:
    """c_a a + c_b b, anchored at the end that t is nearer to, so that both ends are exact."""
    c_a, c_b = coefficients
    return (
        span_combination([a, b], [c_a, c_b]) if t <= 0.5 else span_combination([b, a], [c_b, c_a])
    )
