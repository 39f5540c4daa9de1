"""LiNeS: scale task vectors by the depth of the layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.methods.registry import Base, method, shared
from weightsmith.methods.task_vectors import (
    density_parameter,
    keep_largest,
    merge_vectors,
    task_vectors,
    weight_parameter,
)
from weightsmith.tensors import scalars
from weightsmith.tensors.graph import Number, Scope, Site, Value, add_all, apply, scalar, total


@method(
    "lines",
    title="LiNeS (layer-increasing scaling)",
    paper="Wang et al., ICLR 2025, arXiv:2410.17146",
    base=Base.REQUIRED,
)
@dataclass(frozen=True, slots=True)
class Lines:
    """Keep shallow layers near the base and let deep layers change.

        theta = theta_0 + s_l tau_M;   s_l = alpha + beta l / (L - 1) in block l = 0..L-1;   s = alpha elsewhere
        tau_M = sum_i w_i tau_i, or their TIES merge (merger: ties)
        alpha = (||sum_i tau_i||_1 / ||tau_M||_1) / N        over the whole model, where alpha is not given
        beta = 1 - alpha                                    where beta is not given

    With one expert - a fine-tune, or the result of any method - this is the paper's editing of one task: give
    alpha, and the first block is scaled by alpha and the last by 1; alpha = 1 leaves the expert. With several
    it is the paper's multi-task rule, whose alpha for plain sums is 1/N. The only block of a model with one
    counts as the last. Embeddings, final norms and heads lie outside the blocks and get alpha, as does every
    tensor of a model whose blocks are not known. A model without any change keeps its base.
    """

    alpha: float | None = shared(
        None, optional=True, doc="scale of the first block; none: from L1 norms"
    )
    beta: float | None = shared(
        None, optional=True, doc="what the last block's scale is larger by; none: 1 - alpha"
    )
    weight: tuple[float, ...] = weight_parameter()
    merger: str = shared(
        "sum", choices=("sum", "ties"), doc="how tau_M is formed from several experts"
    )
    density: tuple[float, ...] = density_parameter(
        0.2, "with merger ties: share of elements that the trim keeps"
    )

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Scale the merged task vector by depth and add it to the base."""
        base, deltas = task_vectors(base, experts)
        merged = self._merged(deltas, site)
        alpha: Number = self.alpha if self.alpha is not None else l1_share(deltas, merged)
        if site.layer is None:
            return base + merged * alpha
        depth = site.layer / (site.layers - 1) if site.layers > 1 else 1.0
        beta: Number = self.beta if self.beta is not None else 1.0 - scalar(alpha)
        return base + merged * (scalar(alpha) + scalar(beta) * depth)

    def _merged(self, deltas: list[Value], site: Site) -> Value:
        if self.merger == "sum":
            return merge_vectors(deltas, self.weight, normalize="none", zero_sum=None)
        trimmed = [
            keep_largest(d, density, Scope.MODEL, site)
            for d, density in zip(deltas, self.density, strict=True)
        ]
        return merge_vectors(trimmed, self.weight, normalize="absolute", zero_sum="zero")


def l1_share(deltas: Sequence[Value], merged: Value) -> Number:
    """(||sum_i tau_i||_1 / ||tau_M||_1) / N over the model; 1/N if nothing changed."""
    if len(deltas) == 1 and merged is deltas[0]:
        return 1.0
    before, after = total(abs(add_all(deltas)), Scope.MODEL), total(abs(merged), Scope.MODEL)
    return apply(_share, before, after, len(deltas))


def _share(before: Any, after: Any, n: Any) -> Any:
    return scalars.divide(before, after, 1.0) / n
