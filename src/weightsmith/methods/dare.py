"""DARE: drop task-vector elements at random, rescale the rest, then merge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.graph.graph import Scope, Value
from weightsmith.graph.site import Site
from weightsmith.methods.parts.registry import REQUIRED, Base, method, shared
from weightsmith.methods.parts.task_vectors import (
    density_parameter,
    fuse,
    keep_at_random,
    keep_largest,
    lambda_parameter,
    normalize_parameter,
    rescale_floor_parameter,
    rescale_parameter,
    restore_l1,
    task_vectors,
    weight_parameter,
    zero_sum_parameter,
)

_PAPER = "Yu et al., ICML 2024, arXiv:2311.03099"
_MERGEKIT = {"weight": REQUIRED, "density": 1.0, "rescale": "l1", "rescale_floor": 1e-7}
_DENSITY = "1 - p, the probability that an element is kept"


def drop_parameter() -> Any:
    """What decides whether an element is dropped."""
    return shared(
        "random",
        choices=("random", "magnitude"),
        doc="what is dropped: elements by chance, or the smallest of each tensor",
    )


@method(
    "dare_linear",
    title="DARE + task arithmetic",
    paper=_PAPER,
    base=Base.REQUIRED,
    presets={"mergekit": _MERGEKIT},
    generalises=("task_arithmetic",),
)
@dataclass(frozen=True, slots=True)
class DareLinear:
    """Drop and rescale, then task arithmetic.

        m_i ~ Bernoulli(density) per element;   tau^_i = m_i tau_i / density
        theta = theta_0 + lambda sum_i w_i tau^_i

    The expectation of tau^_i is tau_i. The default density of 0.1 is the paper's p = 0.9, meant for the small
    changes of supervised fine-tuning. Random numbers depend on seed, model, tensor name and flat index alone.
    `rescale: l1`, which is what `true` means in mergekit, restores the L1 norm of each task vector instead of
    dividing by the density. `drop: magnitude` is the authors' control: exactly the floor(density N) largest elements of
    each tensor stay, and are divided by the density as well, which makes them too large (`rescale: none` or l1 does
    not). Their code drops floor((1 - density) N), and with the last all that are equal to it.
    """

    weight: tuple[float, ...] = weight_parameter()
    density: tuple[float, ...] = density_parameter(0.1, _DENSITY)
    drop: str = drop_parameter()
    normalize: str = normalize_parameter("none")
    rescale: str = rescale_parameter("probability", random=True)
    rescale_floor: float = rescale_floor_parameter()
    scale: float = lambda_parameter()

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Drop, rescale, and add to the base."""
        base, deltas = task_vectors(base, experts)
        kept = drop_and_rescale(deltas, self, site)
        return fuse(base, kept, self.weight, site=site, normalize=self.normalize, scale=self.scale)


@method(
    "dare_ties",
    title="DARE + TIES",
    paper=_PAPER,
    base=Base.REQUIRED,
    presets={
        "mergekit": {**_MERGEKIT, "normalize": "none", "zero_sum": "positive"},
        "mergelm": {"trim": 0.2, "zero_sum": "majority"},
    },
    generalises=("ties",),
)
@dataclass(frozen=True, slots=True)
class DareTies:
    """Drop and rescale, then elect signs and merge what agrees.

        m_i ~ Bernoulli(density) per element;   tau^_i = m_i tau_i / density
        g = sign(sum_i w_i tau^_i);   theta = theta_0 + lambda * (mean of the w_i tau^_i whose sign is g)

    As `dare_linear`, with the consensus of `ties`. `trim` keeps that share of each dropped task vector (largest
    magnitudes over the whole model) before the election; the authors' code (preset mergelm) trims to 0.2, the
    default does not. mergekit neither trims nor divides.
    """

    weight: tuple[float, ...] = weight_parameter()
    density: tuple[float, ...] = density_parameter(0.1, _DENSITY)
    drop: str = drop_parameter()
    trim: float = shared(
        1.0, low=0.0, high=1.0, doc="share of elements that a trim after the drop keeps; 1 for none"
    )
    normalize: str = normalize_parameter("absolute")
    rescale: str = rescale_parameter("probability", random=True)
    rescale_floor: float = rescale_floor_parameter()
    scale: float = lambda_parameter()
    zero_sum: str = zero_sum_parameter(majority=True)

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Drop, rescale, elect, merge, and add to the base."""
        base, deltas = task_vectors(base, experts)
        kept = drop_and_rescale(deltas, self, site)
        trimmed = [
            keep_largest(v, self.trim, site.over_model("trim", i, self.trim), site)
            for i, v in enumerate(kept)
        ]
        return fuse(
            base,
            trimmed,
            self.weight,
            site=site,
            normalize=self.normalize,
            scale=self.scale,
            zero_sum=self.zero_sum,
        )


def drop_and_rescale(
    deltas: Sequence[Value], how: DareLinear | DareTies, site: Site
) -> list[Value]:
    """Each task vector after DARE's drop, rescaled as asked."""
    dropped = []
    for i, (delta, density) in enumerate(zip(deltas, how.density, strict=True)):
        if how.drop == "random":
            kept = keep_at_random(delta, density, site.uniform(i), how.rescale)
        else:
            kept = keep_largest(delta, density, Scope.TENSOR, site)
            if how.rescale == "probability" and 0.0 < density < 1.0:
                kept = kept / density
        if how.rescale == "l1":
            kept = restore_l1(kept, delta, density, how.rescale_floor)
        dropped.append(kept)
    return dropped
