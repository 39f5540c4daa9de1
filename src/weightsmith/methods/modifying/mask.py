"""Masks of task vectors that were found earlier: binary ones, and factors of elements, rows or columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.graph import Site, Value, where
from weightsmith.methods.parts.modifiers import deltas_of, displaced, modifier
from weightsmith.methods.parts.registry import Base


@modifier(
    "mask",
    title="Masks from a file",
    paper="Tang et al., 2023, arXiv:2312.06173",
    base=Base.OPTIONAL,
    statistics=("mask",),
)
@dataclass(frozen=True, slots=True)
class Mask:
    """Multiply each task vector by a mask of its own.

        tau'_i = m_i * tau_i, element by element

    m_i is read from the expert's statistics of kind mask: one number for each element, or for each row or column, 0
    and 1 or whatever was learned (the concrete masks of the paper lie in [0, 1]). Without a base the weights
    themselves are multiplied. Tensors without masks stay as they are. Where m_i is 0 the expert is the base, and where
    it is 1 it is itself, without rounding.
    """

    def modify(self, base: Value | None, experts: Sequence[Value], site: Site) -> list[Value]:
        """Multiply."""
        if not site.statistics:
            return list(experts)
        deltas = deltas_of(base, experts)
        masks = [statistic.value for statistic in site.statistics]
        result = []
        for expert, delta, mask in zip(experts, deltas, masks, strict=True):
            kept = mask * delta
            if base is None:
                result.append(kept)
                continue
            # Each form is exact at one end, and both have the derivative tau.
            whole = where(mask < 0.5, base + kept, expert - (1.0 - mask) * delta)
            result.append(displaced(base, kept, whole))
        return result
