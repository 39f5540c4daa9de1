"""Task vectors, or weights, made sparse by how much of the activations passes through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.errors import RecipeError
from weightsmith.graph import Site, Value, sqrt, where
from weightsmith.methods.parts.modifiers import deltas_of, displaced, modifier
from weightsmith.methods.parts.registry import REQUIRED, Base, shared
from weightsmith.methods.parts.task_vectors import keep_largest


@modifier(
    "wanda",
    title="Pruning by weights and activations (Wanda)",
    paper="Sun et al., ICLR 2024, arXiv:2306.11695",
    base=Base.OPTIONAL,
    statistics=("channels:input_square",),
)
@dataclass(frozen=True, slots=True)
class Wanda:
    """Keep a share of each task vector's elements: those with which the outputs change most on the expert's own data.

        S_ij = |tau_ij| sqrt(E x_j^2);   tau'_ij = tau_ij where S_ij is among the floor(density N) largest, else 0
        S_ij = |theta_ij| sqrt(E x_j^2)                                         with importance: weight

    x_j are the inputs of channel j, over the expert's data. N counts the elements of an output's row, as in the paper,
    of the tensor, or of the whole model (scope). Without a base the weights themselves are pruned, which is the paper's
    method. Equal scores are told apart as equal magnitudes are. Tensors without statistics (embeddings, biases) stay as
    they are. Raises RecipeError for rows of kernels, and of weights that are stored input first.
    """

    density: float = shared(REQUIRED, low=0.0, high=1.0, doc="share of elements that are kept")
    importance: str = shared(
        "delta",
        choices=("delta", "weight"),
        doc="what is multiplied by the activations: the task vector, or the expert's weight",
    )
    scope: str = shared(
        "row", choices=("row", "tensor", "model"), doc="what the share is counted in"
    )

    def modify(self, base: Value | None, experts: Sequence[Value], site: Site) -> list[Value]:
        """Drop what matters least of every task vector."""
        if not site.statistics or self.density >= 1.0:
            return list(experts)
        if self.scope == "row" and (site.input_first or len(site.shape) > 3):
            raise RecipeError(
                f"modifier wanda: the rows of {site.name!r} of shape {list(site.shape)} are not those of its outputs; "
                "set `scope: tensor`."
            )
        deltas = deltas_of(base, experts)
        result = []
        for i, (expert, delta) in enumerate(zip(experts, deltas, strict=True)):
            reach = sqrt(site.statistics[i].value)
            ranked = reach * abs(delta if self.importance == "delta" else expert)
            extent = site.over(self.scope, "wanda", i, self.density)
            kept = keep_largest(delta, self.density, extent, site, ranked=ranked)
            whole = None if base is None else where(kept.equals(0.0), base, expert)
            result.append(displaced(base, kept, whole))
        return result
