"""DARE: drop task-vector elements at random, rescale the rest, then merge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.graph import Scope, Site, Value
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
    restore_l1_of_each,
    task_vectors,
    weight_parameter,
    zero_sum_parameter,
)

_PAPER = "Yu et al., ICML 2024, arXiv:2311.03099"
_MERGEKIT = {"weight": REQUIRED, "density": 1.0, "rescale": "l1", "rescale_floor": 1e-7}


@dataclass(frozen=True, slots=True)
class Dropped:
    """The sparsifier of both methods: its parameters, and task vectors after it."""

    weight: tuple[float, ...] = weight_parameter()
    density: tuple[float, ...] = density_parameter(
        0.1, "1 - p, the probability that an element is kept"
    )
    drop: str = shared(
        "random",
        choices=("random", "magnitude"),
        doc="what is dropped: elements by chance, or the smallest of each tensor",
    )
    rescale: str = rescale_parameter("probability", random=True)
    rescale_floor: float = rescale_floor_parameter()

    def sparse(self, deltas: Sequence[Value], site: Site) -> list[Value]:
        """tau^_i: each task vector with elements dropped and the rest rescaled."""
        kept = [
            self._keep(i, delta, density, site)
            for i, (delta, density) in enumerate(zip(deltas, self.density, strict=True))
        ]
        if self.rescale != "l1":
            return kept
        return restore_l1_of_each(kept, deltas, self.density, self.rescale_floor)

    def _keep(self, expert: int, delta: Value, density: float, site: Site) -> Value:
        if self.drop == "random":
            return keep_at_random(delta, density, site.uniform(expert), self.rescale)
        kept = keep_largest(delta, density, Scope.TENSOR, site)
        divided = self.rescale == "probability" and 0.0 < density < 1.0
        return kept / density if divided else kept


@method(
    "dare_linear",
    title="DARE + task arithmetic",
    paper=_PAPER,
    base=Base.REQUIRED,
    presets={"mergekit": _MERGEKIT},
    generalises=("task_arithmetic",),
)
@dataclass(frozen=True, slots=True)
class DareLinear(Dropped):
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

    normalize: str = normalize_parameter("none")
    scale: float = lambda_parameter()

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Drop, rescale, and add to the base."""
        base, deltas = task_vectors(base, experts)
        kept = self.sparse(deltas, site)
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
class DareTies(Dropped):
    """Drop and rescale, then elect signs and merge what agrees.

        m_i ~ Bernoulli(density) per element;   tau^_i = m_i tau_i / density
        g = sign(sum_i w_i tau^_i);   theta = theta_0 + lambda * (mean of the w_i tau^_i whose sign is g)

    As `dare_linear`, with the consensus of `ties`. `trim` keeps that share of each dropped task vector (largest
    magnitudes over the whole model) before the election; the authors' code (preset mergelm) trims to 0.2, the
    default does not. mergekit neither trims nor divides.
    """

    trim: float = shared(
        1.0, low=0.0, high=1.0, doc="share of elements that a trim after the drop keeps; 1 for none"
    )
    normalize: str = normalize_parameter("absolute")
    scale: float = lambda_parameter()
    zero_sum: str = zero_sum_parameter(majority=True)

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Drop, rescale, elect, merge, and add to the base."""
        base, deltas = task_vectors(base, experts)
        trimmed = [
            keep_largest(v, self.trim, site.over_model("trim", i, self.trim), site)
            for i, v in enumerate(self.sparse(deltas, site))
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
