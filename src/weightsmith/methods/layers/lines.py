"""LiNeS: scale task vectors by the depth of the layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.errors import RecipeError
from weightsmith.graph import Number, Site, Value, add_all, apply, scalar, scalars, total
from weightsmith.methods.parts.modifiers import displaced, modifier
from weightsmith.methods.parts.registry import REQUIRED, Base, method, shared
from weightsmith.methods.parts.task_vectors import (
    density_parameter,
    keep_largest,
    merge_vectors,
    task_vectors,
    weight_parameter,
)


@method(
    "lines",
    title="LiNeS (layer-increasing scaling)",
    paper="Wang et al., ICLR 2025, arXiv:2410.17146",
    base=Base.REQUIRED,
    step={"merger": "first"},
    step_unless="alpha",
    generalises=(
        "task_arithmetic",
        "ties",
    ),
)
@dataclass(frozen=True, slots=True)
class Lines:
    """Keep shallow layers near the base and let deep layers change.

        theta = theta_0 + s_l tau_M;   s_l = alpha + beta l / (L - 1) in block l = 0..L-1;   s = alpha elsewhere
        tau_M = sum_i w_i tau_i, or their TIES merge (merger: ties), or any (merger: first)
        alpha = (||sum_i tau_i||_1 / ||tau_M||_1) / N        over the whole model, where alpha is not given
        beta = 1 - alpha                                    where beta is not given

    With one expert this is the paper's editing of one task: the first block is scaled by alpha and the last by 1, and
    alpha = 1 leaves the expert. The paper searches alpha between 0 and 1, so it must be given. With several it is the
    multi-task rule, whose alpha for plain sums is 1/N. With `merger: first` the first expert is the merge, by
    whatever method, and the others are the N experts that it was made of. As a step of `then:` without alpha it is so,
    with the recipe's experts as they were before any modifier: after `consensus`, or TIES, alpha is the paper's for it.
    The only block of a model with one counts as the last. Embeddings, final norms and heads lie outside the blocks and
    get alpha, as does every tensor of a model whose blocks are not known. A model without any change keeps its
    base. Raises RecipeError where alpha is neither given nor to be had.
    """

    alpha: float | None = shared(
        None, optional=True, doc="scale of the first block; none: from L1 norms"
    )
    beta: float | None = shared(
        None, optional=True, doc="what the last block's scale is larger by; none: 1 - alpha"
    )
    weight: tuple[float, ...] = weight_parameter()
    merger: str = shared(
        "sum",
        choices=("sum", "ties", "first"),
        doc="how tau_M is formed from several experts; first: the first is it, merged from the others",
    )
    density: tuple[float, ...] = density_parameter(
        0.2, "with merger ties: share of elements that the trim keeps"
    )

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Scale the merged task vector by depth and add it to the base."""
        base, deltas = task_vectors(base, experts)
        merged = self._merged(deltas, site)
        alpha: Number = self.alpha if self.alpha is not None else self._share(deltas, merged, site)
        if site.layer is None:
            return base + merged * alpha
        beta: Number = self.beta if self.beta is not None else 1.0 - scalar(alpha)
        return base + merged * (scalar(alpha) + scalar(beta) * depth_of(site))

    def _share(self, deltas: list[Value], merged: Value, site: Site) -> Number:
        if len(deltas) == 1:
            raise RecipeError(
                "lines with one expert needs alpha, the scale of its first block between 0 and 1, which the paper "
                "searches on validation data; its L1 norms tell it for merges of several experts only."
            )
        return l1_share(deltas[1:] if self.merger == "first" else deltas, merged, site)

    def _merged(self, deltas: list[Value], site: Site) -> Value:
        if self.merger == "first":
            return deltas[0]
        if self.merger == "sum":
            return merge_vectors(deltas, self.weight, site=site, normalize="none", zero_sum=None)
        trimmed = [
            keep_largest(d, density, site.over_model("trim", i, density), site)
            for i, (d, density) in enumerate(zip(deltas, self.density, strict=True))
        ]
        return merge_vectors(trimmed, self.weight, site=site, normalize="absolute", zero_sum="zero")


@modifier(
    "scale_by_depth",
    title="LiNeS scaling of each expert",
    paper="Wang et al., ICLR 2025, arXiv:2410.17146",
    base=Base.REQUIRED,
)
@dataclass(frozen=True, slots=True)
class ScaleByDepth:
    """The layer-linear scaling of LiNeS, on every task vector before it is merged.

        tau'_i = s_l tau_i;   s_l = alpha + beta l / (L - 1) in block l = 0..L-1;   s = alpha elsewhere

    With methods that are linear in the task vectors it is the same as `then: lines` with that alpha; with those that
    elect or trim it changes what they see. beta defaults to 1 - alpha. The only block of a model with one counts
    as the last.
    """

    alpha: float = shared(
        REQUIRED, doc="scale of the first block, and of what lies outside the blocks"
    )
    beta: float | None = shared(
        None, optional=True, doc="what the last block's scale is larger by; none: 1 - alpha"
    )

    def modify(self, base: Value | None, experts: Sequence[Value], site: Site) -> list[Value]:
        """Scale every task vector."""
        base, deltas = task_vectors(base, experts)
        beta = 1.0 - self.alpha if self.beta is None else self.beta
        factor = self.alpha if site.layer is None else self.alpha + beta * depth_of(site)
        if factor == 1.0:
            return list(experts)
        return [displaced(base, delta * factor) for delta in deltas]


def depth_of(site: Site) -> float:
    """l / (L - 1) of a tensor in block l of L; 1 in the only block."""
    assert site.layer is not None
    return site.layer / (site.layers - 1) if site.layers > 1 else 1.0


def l1_share(deltas: Sequence[Value], merged: Value, site: Site) -> Number:
    """(||sum_i tau_i||_1 / ||tau_M||_1) / N over the model; 1/N if nothing changed."""
    before = total(abs(add_all(deltas)), site.over_model("sum of the task vectors"))
    after = total(abs(merged), site.over_model("merged task vector"))
    return apply(_share, before, after, len(deltas))


def _share(before: Any, after: Any, n: Any) -> Any:
    return scalars.divide(before, after, 1.0) / n
