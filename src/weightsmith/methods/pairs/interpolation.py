"""The straight line through a base and one expert: inside the segment (WiSE-FT) and beyond it (ExPO)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.graph import Site, Value
from weightsmith.methods.averages.linear import interpolate
from weightsmith.methods.parts.registry import Base, method, shared


@method(
    "wise_ft",
    title="WiSE-FT",
    paper="Wortsman et al., CVPR 2022, arXiv:2109.01903",
    base=Base.REQUIRED,
    experts=(1, 1),
)
@dataclass(frozen=True, slots=True)
class WiseFt:
    """Interpolate between the base (zero-shot) model and one fine-tuned expert.

        theta = (1 - alpha) theta_0 + alpha theta_1

    alpha = 0.5 is the paper's choice where nothing can be validated. alpha = 0 gives the base and alpha = 1 the
    expert, both bit for bit; weights equal in both are untouched for every alpha.
    """

    alpha: float = shared(0.5, doc="position between base (0) and expert (1)")

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Interpolate base and expert."""
        assert base is not None
        return interpolate(base, experts[0], self.alpha)


@method(
    "expo",
    title="ExPO (model extrapolation)",
    paper="Zheng et al., 2024, arXiv:2404.16792",
    base=Base.REQUIRED,
    experts=(1, 1),
    generalises=("wise_ft",),
)
@dataclass(frozen=True, slots=True)
class Expo:
    """Extrapolate from the weaker base (SFT) through the expert (after preference training).

        theta = theta_1 + alpha (theta_1 - theta_0)

    alpha = 0.3 is within the authors' recommended 0.3 to 0.5. alpha = 0 gives the expert and alpha = -1 the
    base.
    """

    alpha: float = shared(0.3, doc="how far to go beyond the expert, in lengths of the task vector")

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Extrapolate beyond the expert."""
        assert base is not None
        return interpolate(base, experts[0], 1.0 + self.alpha)
