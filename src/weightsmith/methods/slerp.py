"""Spherical linear interpolation (Shoemake, SIGGRAPH 1985)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.methods.registry import REQUIRED, Base, method, shared
from weightsmith.tensors import scalars
from weightsmith.tensors.graph import Site, Value, dot, linear_combination, solve

# Above this cosine the arc is straight to float32 precision and sin(omega) loses its digits (mergekit's threshold).
COLLINEAR = 0.9995


@method(
    "slerp",
    title="SLERP",
    paper="Shoemake 1985",
    base=Base.REQUIRED,
    experts=(1, 1),
)
@dataclass(frozen=True, slots=True)
class Slerp:
    """Spherical interpolation from the base (t = 0) to one expert (t = 1).

        c = <a, b> / (|a| |b|);   omega = arccos c
        theta = [sin((1 - t) omega) a + sin(t omega) b] / sin omega,   and   (1 - t) a + t b   where |c| > 0.9995

    a and b are the whole flattened tensors, unnormalised. A zero tensor has c = 0.
    """

    t: float = shared(REQUIRED, doc="position between base and expert; 0 is the base, 1 the expert")

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        assert base is not None
        a, b = base, experts[0]
        coefficients = solve(slerp_coefficients, [dot(a, a), dot(b, b), dot(a, b), self.t], 2)
        return linear_combination([a, b], coefficients)


def slerp_coefficients(aa: Any, bb: Any, ab: Any, t: Any) -> tuple[Any, Any]:
    """Coefficients of a and b from their dot products."""
    cosine = scalars.clamp(scalars.divide(ab, scalars.sqrt(aa) * scalars.sqrt(bb)), -1.0, 1.0)
    straight = abs(cosine) > COLLINEAR
    omega = scalars.acos(scalars.where(straight, 0.0, cosine))
    first = scalars.where(straight, 1.0 - t, scalars.sin((1.0 - t) * omega) / scalars.sin(omega))
    second = scalars.where(straight, t, scalars.sin(t * omega) / scalars.sin(omega))
    return first, second
