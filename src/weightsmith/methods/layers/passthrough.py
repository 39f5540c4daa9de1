"""Passthrough: one model as it is, or scaled; the method of layer stacking."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.graph import Site, Value
from weightsmith.methods.parts.registry import Base, method, per_expert


@method(
    "passthrough",
    title="Passthrough",
    paper="mergekit, 2023",
    base=Base.IGNORED,
    experts=(1, 1),
    presets={"mergekit": {}},
)
@dataclass(frozen=True, slots=True)
class Passthrough:
    """The expert itself, bit for bit, or scale times the expert.

    theta = scale theta_1
    """

    scale: tuple[float | None, ...] = per_expert(
        None, optional=True, doc="factor; none leaves every bit as it is"
    )

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Hand the expert on; the base plays no part."""
        (scale,) = self.scale
        return experts[0] if scale is None or scale == 1.0 else experts[0] * scale
