"""Localize-and-Stitch without data: the largest changes of each expert, averaged where they overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.graph import Extent, Site, Value, above, add_all, largest_share, where
from weightsmith.methods.parts.multi_task import PARTS, part_parameter, task_number
from weightsmith.methods.parts.named_roles import has_role
from weightsmith.methods.parts.registry import Base, method, shared
from weightsmith.methods.parts.task_vectors import density_parameter, lambda_parameter, task_vectors

_EMBEDDINGS = "embedding position_embedding type_embedding"


@method(
    "localize_and_stitch",
    title="Localize-and-Stitch (data-free)",
    paper="He et al., TMLR 2025, arXiv:2408.13656",
    base=Base.REQUIRED,
    presets={"language_models": {"exclude": _EMBEDDINGS}},
    generalises=("soup",),
)
@dataclass(frozen=True, slots=True)
class LocalizeAndStitch:
    """Transplant the region of each expert that changed most, and average where regions overlap.

        m_i = the floor(density N) elements of largest |tau_i|, N over all merged tensors of the model
        theta = theta_0 + lambda sum_i m_i tau_i / sum_i m_i            (0 / 0 = 0)

    The paper's data-free form keeps 5 to 10 % of the weights, and 0.1 is the default; its trained masks keep 1 %.
    Density 1 is the plain average of the task vectors. `exclude` names roles (`embedding`, `norm`, `attention.q`,
    or a family such as `attention`) of tensors that stay at the base and do not count in N; preset
    `language_models` excludes embeddings as the authors' code does. Exactly floor(density N) elements are taken, equal
    magnitudes by rank (`equal_magnitudes`), never zeros. Model scope; cost O(N) per weight, two to three passes.

    With `task` the region of that expert alone is transplanted, theta_0 + lambda m_t sum_i m_i tau_i / sum_i m_i: its
    own change where no other region lies. `weightsmith bundle create` stores theta_0, the stitched vector and every
    m_t, one bit per element.
    """

    density: tuple[float, ...] = density_parameter(
        0.1, "share of the model that is an expert's region"
    )
    scale: float = lambda_parameter()
    exclude: str = shared("", doc="roles, separated by spaces, of tensors that are not merged")
    task: str = shared(
        "",
        doc="the expert whose region alone is transplanted, by label or number from 1; empty: all",
    )
    part: str = part_parameter(PARTS)

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Localise, stitch, and add to the base."""
        base, deltas = task_vectors(base, experts)
        t = None
        if self.task or self.part == "mask":
            t = task_number(self.task, len(experts), site, "localize_and_stitch")
        if has_role(site, self.exclude, "exclude"):
            return base if self.part == "model" else deltas[0] * 0.0
        regions = [
            region(d, density, site.over_model("region", i, density))
            for i, (d, density) in enumerate(zip(deltas, self.density, strict=True))
        ]
        if self.part == "mask" and t is not None:
            return regions[t]
        shares = add_all([where(r, 1.0, 0.0) for r in regions])
        stitched = add_all([where(r, d, 0.0) for r, d in zip(regions, deltas, strict=True)])
        merged = stitched / where(shares.equals(0.0), 1.0, shares)
        merged = merged if self.scale == 1.0 else merged * self.scale
        if self.part == "shared":
            return merged
        return base + (merged if t is None else where(regions[t], merged, 0.0))


def region(delta: Value, density: float, extent: Extent) -> Value:
    """Mask of the floor(density N) largest magnitudes of the extent; of everything at density 1."""
    if density >= 1.0:
        return abs(delta) >= 0.0
    return above(abs(delta), largest_share(abs(delta), density, extent))
