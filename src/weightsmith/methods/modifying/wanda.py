"""Task vectors, or weights, made sparse by how much of the activations passes through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from weightsmith.graph import Site, Value, floor_of_share, sqrt, where, whole
from weightsmith.methods.parts.matrices import in_dtype_of
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
    method; the row of a kernel is that of its matrix [O, I k...], and where inputs are stored first it is a column.
    Equal scores are told apart as equal magnitudes are. Tensors without statistics (embeddings, biases) stay as they
    are.
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
        deltas = deltas_of(base, experts)
        result = []
        for i, (expert, delta) in enumerate(zip(experts, deltas, strict=True)):
            reach = sqrt(site.statistics[i].value)
            ranked = reach * abs(delta if self.importance == "delta" else expert)
            if self.scope == "row" and (site.input_first or len(site.shape) > 2):
                kept = _largest_of_outputs(delta, ranked, self.density, site)
            else:
                extent = site.over(self.scope, "wanda", i, self.density)
                kept = keep_largest(delta, self.density, extent, site, ranked=ranked)
            whole = None if base is None else where(kept.equals(0.0), base, expert)
            result.append(displaced(base, kept, whole))
        return result


def _largest_of_outputs(delta: Value, ranked: Value, density: float, site: Site) -> Value:
    """Zero all but what ranks highest of each output whose weights do not lie in a row of the last axis."""
    outputs = site.shape[-1] if site.input_first else site.shape[0]
    kept = floor_of_share(density, site.numel // max(outputs, 1))
    ranks = whole(OutputRanks(site.input_first), ranked)
    return where(ranks < float(kept), delta, 0.0)


@dataclass(frozen=True, slots=True)
class OutputRanks:
    """The ranks of scores [O, ...], or [I, O], among those of one output: 0 for the largest, equal ones by index."""

    input_first: bool

    def __call__(self, linalg: Any, scores: Any) -> Any:
        """In the shape and dtype of the scores."""
        rows = scores.T if self.input_first else scores.reshape(scores.shape[0], -1)
        order = linalg.argsort(-rows, **({"kind": "stable"} if linalg is np else {"stable": True}))
        ranks = in_dtype_of(scores, linalg.argsort(order))
        return ranks.T if self.input_first else ranks.reshape(scores.shape)
