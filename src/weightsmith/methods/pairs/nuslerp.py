"""NuSLERP: spherical interpolation of two experts, or of their task vectors, by weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.graph import Number, Scope, Site, Value, dot, solve, whole
from weightsmith.methods.pairs.slerp import on_the_nearer, slerp_coefficients
from weightsmith.methods.parts.matrices import in_dtype_of, in_float64
from weightsmith.methods.parts.registry import REQUIRED, Base, method, per_expert, shared
from weightsmith.methods.parts.span import arc_coefficients, cosine

# Below this sum of the weights their ratio means nothing; mergekit's threshold.
_NO_WEIGHT = 1e-6


@method(
    "nuslerp",
    title="NuSLERP",
    paper="mergekit, 2024; the arc of Shoemake, SIGGRAPH 1985",
    base=Base.OPTIONAL,
    experts=(2, 2),
    presets={"mergekit": {"weight": REQUIRED}},
    generalises=("slerp",),
)
@dataclass(frozen=True, slots=True)
class NuSlerp:
    """Spherical interpolation between two experts.

        t = w_2 / (w_1 + w_2)                 (0.5 where the sum is below 1e-6)
        theta = slerp(t; theta_1, theta_2)                                     without base
        theta = theta_0 + slerp(t; theta_1 - theta_0, theta_2 - theta_0)       with base

    What counts as one vector: the whole tensor (nuslerp_flatten), else each row, that is each vector along the
    last axis, else - with nuslerp_row_wise, whose name says the opposite - each vector along the first axis.
    0-d and 1-d tensors are one vector. Vectors on one line are interpolated straight; zero vectors have cosine
    0.
    """

    weight: tuple[float, ...] = per_expert(
        1.0, doc="weights of the two experts; only their ratio matters"
    )
    nuslerp_flatten: bool = shared(True, doc="take the whole tensor for one vector")
    nuslerp_row_wise: bool = shared(
        False, doc="without flatten: vectors along the first axis instead of the last"
    )

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Interpolate the experts, or their task vectors."""
        total = sum(self.weight)
        t = 0.5 if abs(total) < _NO_WEIGHT else self.weight[1] / total
        if base is None:
            return self._arc(experts[0], experts[1], t, site)
        return base + self._arc(experts[0] - base, experts[1] - base, t, site)

    def _arc(self, a: Value, b: Value, t: float, site: Site) -> Value:
        if self.nuslerp_row_wise and not self.nuslerp_flatten and len(site.shape) > 1:
            return whole(SlerpAlongFirstAxis(t), a, b)
        scope = Scope.TENSOR if self.nuslerp_flatten else Scope.ROW
        numbers: list[Number] = [dot(a, a, scope), dot(b, b, scope), dot(a, b, scope), t, 1.0]
        return on_the_nearer(a, b, solve(slerp_coefficients, numbers, 2), t)


@dataclass(frozen=True, slots=True)
class SlerpAlongFirstAxis:
    """Interpolates every vector along the first axis of two arrays."""

    t: float

    def __call__(self, linalg: Any, a: Any, b: Any) -> Any:
        """Array of the shape and dtype of `a` and `b`, computed in float64."""
        x, y = in_float64(linalg, a), in_float64(linalg, b)
        cosines = cosine((x * x).sum(0), (y * y).sum(0), (x * y).sum(0))
        c_x, c_y = arc_coefficients(cosines, self.t, 1.0)
        return in_dtype_of(a, x * c_x + y * c_y)
