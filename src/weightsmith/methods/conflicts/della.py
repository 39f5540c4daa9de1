"""DELLA: drop task-vector elements at random, small ones of a row more often than large ones, then merge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.graph import Scope, Site, Value
from weightsmith.methods.parts.registry import REQUIRED, Base, method, per_expert, shared
from weightsmith.methods.parts.task_vectors import (
    density_parameter,
    fuse,
    keep_by_rank,
    lambda_parameter,
    normalize_parameter,
    rescale_floor_parameter,
    rescale_parameter,
    restore_l1_of_each,
    task_vectors,
    weight_parameter,
    zero_sum_parameter,
)

_PAPER = "Deep et al., 2024, arXiv:2406.11617"
_MERGEKIT = {
    "weight": REQUIRED,
    "density": 1.0,
    "epsilon": 0.15,
    "rescale": "l1",
    "rescale_floor": 1e-7,
}
_ADAPTIVE = {"none": None, "row": Scope.ROW, "tensor": Scope.TENSOR}


@dataclass(frozen=True, slots=True)
class Pruned:
    """MagPrune, the sparsifier of both methods: its parameters, and task vectors after it."""

    weight: tuple[float, ...] = weight_parameter()
    density: tuple[float, ...] = density_parameter(0.7, "mean probability that an element is kept")
    epsilon: tuple[float, ...] = per_expert(
        0.07, low=0.0, high=0.5, doc="half the spread of the keep probabilities within a row"
    )
    ranking: str = shared(
        "row",
        choices=("row", "tensor", "magnitude"),
        doc="what keep probabilities grow with: the rank in the row or in the tensor, or the magnitude itself",
    )
    rescale: str = rescale_parameter("probability", random=True)
    rescale_floor: float = rescale_floor_parameter()

    def sparse(self, deltas: Sequence[Value], site: Site) -> list[Value]:
        """tau^_i: each task vector after the drop by rank, rescaled as asked."""
        kept = [
            keep_by_rank(delta, density, epsilon, site.uniform(i), site, self.rescale, self.ranking)
            for i, (delta, density, epsilon) in enumerate(
                zip(deltas, self.density, self.epsilon, strict=True)
            )
        ]
        if self.rescale != "l1":
            return kept
        return restore_l1_of_each(kept, deltas, self.density, self.rescale_floor)


@method(
    "della_linear",
    title="DELLA without election",
    paper=_PAPER,
    base=Base.REQUIRED,
    presets={"mergekit": _MERGEKIT},
    cost="O(N m n log n)",
    generalises=(
        "dare_linear",
        "task_arithmetic",
    ),
)
@dataclass(frozen=True, slots=True)
class DellaLinear(Pruned):
    """MagPrune, then task arithmetic; `della` has the rule.

    theta = theta_0 + lambda sum_i w_i tau^_i,   tau^_i from MagPrune
    """

    normalize: str = normalize_parameter("none")
    scale: float = lambda_parameter()

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Prune, and add to the base."""
        base, deltas = task_vectors(base, experts)
        kept = self.sparse(deltas, site)
        return fuse(base, kept, self.weight, site=site, normalize=self.normalize, scale=self.scale)


@method(
    "della",
    title="DELLA",
    paper=_PAPER,
    base=Base.REQUIRED,
    presets={"mergekit": {**_MERGEKIT, "normalize": "signed", "zero_sum": "positive"}},
    cost="O(N m n log n)",
    generalises=(
        "dare_ties",
        "ties",
    ),
)
@dataclass(frozen=True, slots=True)
class Della(Pruned):
    """MagPrune, elect signs, merge what agrees.

        r = 0..n-1, the rank of |tau_i| in its row (last axis, n elements), ties by index
        q = (density - epsilon) + 2 epsilon r / (n - 1);   m ~ Bernoulli(q);   tau^_i = m tau_i / q
        g = sign(sum_i w_i tau^_i);   theta = theta_0 + lambda * (mean of the w_i tau^_i whose sign is g)

    Every survivor is divided by its own q, so the expectation of tau^_i is tau_i. A 1-d tensor is one row; a
    row is the last axis for tensors of more axes too (mergekit ranks along axis 1 there). Rows of one element
    have q = density. density - epsilon and density + epsilon must lie inside (0, 1), else RecipeError; density
    1 keeps and 0 drops everything. Defaults are the authors' example: drop rate 0.3, window 0.14. mergekit
    restores the L1 norm instead of dividing by q.

    Variants of the authors' code: `ranking: tensor` ranks the whole tensor, which holds it in memory; `ranking:
    magnitude` takes (|tau_i| - min) / (max - min) of the row for r / (n - 1), 1/2 where all are equal (their code adds
    1e-7 to the range); `adaptive: row` or `tensor` multiplies what the election leaves of each task vector by (number
    of nonzero elements before) / (number left), per row or tensor, so that lambda need not be searched. Their variant
    without election is `della_linear`.
    """

    normalize: str = normalize_parameter("absolute")
    scale: float = lambda_parameter()
    zero_sum: str = zero_sum_parameter()
    adaptive: str = shared(
        "none",
        choices=tuple(_ADAPTIVE),
        doc="over what the number of elements is made up for that the election removed from a task vector",
    )

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Prune, elect, merge, and add to the base."""
        base, deltas = task_vectors(base, experts)
        return fuse(
            base,
            self.sparse(deltas, site),
            self.weight,
            site=site,
            normalize=self.normalize,
            scale=self.scale,
            zero_sum=self.zero_sum,
            restore=_ADAPTIVE[self.adaptive],
        )
