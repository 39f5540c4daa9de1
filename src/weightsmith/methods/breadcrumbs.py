"""Model Breadcrumbs: drop the smallest and the largest elements of each task vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.graph.graph import Value
from weightsmith.graph.site import Site
from weightsmith.methods.parts.registry import REQUIRED, Base, method, per_expert
from weightsmith.methods.parts.task_vectors import (
    density_parameter,
    fuse,
    keep_between,
    lambda_parameter,
    normalize_parameter,
    rescale_floor_parameter,
    rescale_parameter,
    restore_l1,
    task_vectors,
    weight_parameter,
    zero_sum_parameter,
)

_PAPER = "Davari and Belilovsky, ECCV 2024, arXiv:2312.06795"
_MERGEKIT = {"weight": REQUIRED, "density": 1.0, "rescale_floor": 1e-7}
_DENSITY = "share of elements kept, 1 - beta - gamma"


def gamma_parameter() -> Any:
    """Share of the largest elements that are dropped."""
    return per_expert(0.01, low=0.0, high=1.0, doc="share of elements dropped at the large end")


@method(
    "breadcrumbs",
    title="Model Breadcrumbs",
    paper=_PAPER,
    base=Base.REQUIRED,
    presets={"mergekit": _MERGEKIT},
    generalises=("task_arithmetic",),
)
@dataclass(frozen=True, slots=True)
class Breadcrumbs:
    """Task arithmetic with the middle of each task vector.

        per tensor: drop the floor(gamma N) largest |tau_i|, keep the next floor(density N), drop the rest
        theta = theta_0 + lambda sum_i w_i tau^_i

    The paper's masks drop the smallest beta = 0.85 to 0.9 and the largest gamma = 0.01; the default density is
    0.14. Exactly floor(density N) elements are kept; where gamma leaves fewer, fewer outliers are dropped, and
    in tensors of fewer than 1 / gamma elements none (mergekit up to 0.1.4 lost the whole task vector there).
    Density 1 keeps everything.
    """

    weight: tuple[float, ...] = weight_parameter()
    density: tuple[float, ...] = density_parameter(0.14, _DENSITY)
    gamma: tuple[float, ...] = gamma_parameter()
    normalize: str = normalize_parameter("none")
    rescale: str = rescale_parameter("none", random=False)
    rescale_floor: float = rescale_floor_parameter()
    scale: float = lambda_parameter()

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Mask, and add to the base."""
        base, deltas = task_vectors(base, experts)
        kept = without_outliers(deltas, self, site)
        return fuse(base, kept, self.weight, site=site, normalize=self.normalize, scale=self.scale)


@method(
    "breadcrumbs_ties",
    title="Model Breadcrumbs + TIES",
    paper=_PAPER,
    base=Base.REQUIRED,
    presets={"mergekit": {**_MERGEKIT, "normalize": "none", "zero_sum": "positive"}},
    generalises=("ties",),
)
@dataclass(frozen=True, slots=True)
class BreadcrumbsTies:
    """The masks of `breadcrumbs`, then the election and disjoint mean of `ties`.

        g = sign(sum_i w_i tau^_i);   theta = theta_0 + lambda * (mean of the w_i tau^_i whose sign is g)

    mergekit's version sums instead of taking the mean.
    """

    weight: tuple[float, ...] = weight_parameter()
    density: tuple[float, ...] = density_parameter(0.14, _DENSITY)
    gamma: tuple[float, ...] = gamma_parameter()
    normalize: str = normalize_parameter("absolute")
    rescale: str = rescale_parameter("none", random=False)
    rescale_floor: float = rescale_floor_parameter()
    scale: float = lambda_parameter()
    zero_sum: str = zero_sum_parameter()

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Mask, elect, merge, and add to the base."""
        base, deltas = task_vectors(base, experts)
        return fuse(
            base,
            without_outliers(deltas, self, site),
            self.weight,
            site=site,
            normalize=self.normalize,
            scale=self.scale,
            zero_sum=self.zero_sum,
        )


def without_outliers(
    deltas: Sequence[Value], how: Breadcrumbs | BreadcrumbsTies, site: Site
) -> list[Value]:
    """Each task vector without its largest and smallest elements, rescaled as asked."""
    masked = []
    for delta, density, gamma in zip(deltas, how.density, how.gamma, strict=True):
        kept = keep_between(delta, density, gamma, site)
        if how.rescale == "l1":
            kept = restore_l1(kept, delta, density, how.rescale_floor)
        masked.append(kept)
    return masked
