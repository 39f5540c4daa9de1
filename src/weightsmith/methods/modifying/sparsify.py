"""Sparse task vectors for any method: the trim of TIES and the drop of DARE as a modifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.errors import RecipeError
from weightsmith.graph import Site, Value, where
from weightsmith.methods.parts.modifiers import displaced, modifier
from weightsmith.methods.parts.registry import REQUIRED, Base, shared
from weightsmith.methods.parts.task_vectors import (
    keep_at_random,
    keep_largest,
    restore_l1,
    task_vectors,
)


@modifier(
    "sparsify",
    title="Sparse task vectors",
    paper="Yadav et al., NeurIPS 2023, arXiv:2306.01708 (magnitude); Yu et al., ICML 2024, arXiv:2311.03099 (random)",
    base=Base.REQUIRED,
)
@dataclass(frozen=True, slots=True)
class Sparsify:
    """Keep a share of each task vector's elements and set the others to zero.

        tau'_i = m_i tau_i      m_i: the floor(density N) elements of largest magnitude      (keep: largest)
        tau'_i = m_i tau_i / p  m_i ~ Bernoulli(p), p = density                              (keep: random)

    N counts the elements of the tensor, or of the whole model (scope: model). Equal magnitudes are kept in the order
    of their flat index, over the model by rank (`equal_magnitudes`). Random masks are those of DARE for the same
    seed, model and tensor. rescale says what makes up for the dropped elements: division by the density (probability),
    which is the default of random masks (auto), the L1 norm before (l1), or nothing. Density 1 changes nothing,
    density 0 leaves the base.
    """

    density: float = shared(REQUIRED, low=0.0, high=1.0, doc="share of elements that are kept")
    keep: str = shared("largest", choices=("largest", "random"), doc="which elements are kept")
    scope: str = shared(
        "tensor", choices=("tensor", "model"), doc="with keep largest: what the share is counted in"
    )
    rescale: str = shared(
        "auto",
        choices=("auto", "none", "probability", "l1"),
        doc="what makes up for dropped elements; auto: probability for random masks, else none",
    )

    def modify(self, base: Value | None, experts: Sequence[Value], site: Site) -> list[Value]:
        """Drop elements of every task vector."""
        if self.scope == "model" and self.keep == "random":
            raise RecipeError(
                "modifier sparsify draws each element by itself with keep: random, so scope: model has no meaning; "
                "leave scope out."
            )
        if self.density >= 1.0:
            return list(experts)
        base, deltas = task_vectors(base, experts)
        return [
            self._sparse(base, expert, delta, i, site)
            for i, (expert, delta) in enumerate(zip(experts, deltas, strict=True))
        ]

    def _sparse(self, base: Value, expert: Value, delta: Value, index: int, site: Site) -> Value:
        rescale = self.rescale
        if rescale == "auto":
            rescale = "probability" if self.keep == "random" else "none"
        extent = site.over(self.scope, "sparsify", index, self.density)
        if self.keep == "random":
            kept = keep_at_random(delta, self.density, site.uniform(index), rescale)
        else:
            kept = keep_largest(delta, self.density, extent, site)
            if rescale == "probability" and self.density > 0.0:
                kept = kept / self.density
        if rescale == "l1":
            kept = restore_l1(kept, delta, self.density, 0.0, extent)
        whole = where(kept.equals(0.0), base, expert) if rescale == "none" else None
        return displaced(base, kept, whole)
