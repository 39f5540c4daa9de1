"""Model Breadcrumbs: drop the smallest and the largest elements of each task vector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.graph import Site, Value
from weightsmith.methods.parts.registry import REQUIRED, Base, method, per_expert
from weightsmith.methods.parts.task_vectors import (
    density_parameter,
    fuse,
    keep_between,
    lambda_parameter,
    normalize_parameter,
    rescale_floor_parameter,
    rescale_parameter,
    restore_l1_of_each,
    task_vectors,
    weight_parameter,
    zero_sum_parameter,
)

_PAPER = "Davari and Belilovsky, ECCV 2024, arXiv:2312.06795"
_MERGEKIT = {"weight": REQUIRED, "density": 1.0, "rescale_floor": 1e-7}


@dataclass(frozen=True, slots=True)
class Masked:
    """The sparsifier of both methods: its parameters, and task vectors after it."""

    weight: tuple[float, ...] = weight_parameter()
    density: tuple[float, ...] = density_parameter(0.14, "share of elements kept, 1 - beta - gamma")
    gamma: tuple[float, ...] = per_expert(
        0.01, low=0.0, high=1.0, doc="share of elements dropped at the large end"
    )
    rescale: str = rescale_parameter("none", random=False)
    rescale_floor: float = rescale_floor_parameter()

    def sparse(self, deltas: Sequence[Value], site: Site) -> list[Value]:
        """Each task vector without its largest and smallest elements, rescaled as asked."""
        kept = [
            keep_between(delta, density, gamma, site)
            for delta, density, gamma in zip(deltas, self.density, self.gamma, strict=True)
        ]
        if self.rescale != "l1":
            return kept
        return restore_l1_of_each(kept, deltas, self.density, self.rescale_floor)


@method(
    "breadcrumbs",
    title="Model Breadcrumbs",
    paper=_PAPER,
    base=Base.REQUIRED,
    presets={"mergekit": _MERGEKIT},
    generalises=("task_arithmetic",),
)
@dataclass(frozen=True, slots=True)
class Breadcrumbs(Masked):
    """Task arithmetic with the middle of each task vector.

        per tensor: drop the floor(gamma N) largest |tau_i|, keep the next floor(density N), drop the rest
        theta = theta_0 + lambda sum_i w_i tau^_i

    The paper's masks drop the smallest beta = 0.85 to 0.9 and the largest gamma = 0.01; the default density is
    0.14. Exactly floor(density N) elements are kept; where gamma leaves fewer, fewer outliers are dropped, and
    in tensors of fewer than 1 / gamma elements none (mergekit up to 0.1.4 lost the whole task vector there).
    Density 1 keeps everything.
    """

    normalize: str = normalize_parameter("none")
    scale: float = lambda_parameter()

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Mask, and add to the base."""
        base, deltas = task_vectors(base, experts)
        kept = self.sparse(deltas, site)
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
class BreadcrumbsTies(Masked):
    """The masks of `breadcrumbs`, then the election and disjoint mean of `ties`.

        g = sign(sum_i w_i tau^_i);   theta = theta_0 + lambda * (mean of the w_i tau^_i whose sign is g)

    mergekit's version sums instead of taking the mean.
    """

    normalize: str = normalize_parameter("absolute")
    scale: float = lambda_parameter()
    zero_sum: str = zero_sum_parameter()

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Mask, elect, merge, and add to the base."""
        base, deltas = task_vectors(base, experts)
        return fuse(
            base,
            self.sparse(deltas, site),
            self.weight,
            site=site,
            normalize=self.normalize,
            scale=self.scale,
            zero_sum=self.zero_sum,
        )
