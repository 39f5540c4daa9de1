"""OTA-Merging: task vectors weighted by Adam's second moments, after Fast Fisher Grafting."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

from weightsmith.errors import RecipeError
from weightsmith.graph import (
    Extent,
    Site,
    Value,
    above,
    apply,
    largest_share,
    maximum,
    scalars,
    sqrt,
    total,
    where,
    whole,
    without_gradient,
)
from weightsmith.methods.averages.linear import normalized, weighted_average
from weightsmith.methods.parts.curvature import element_average, power, scaled, squares
from weightsmith.methods.parts.gram import directions, roots
from weightsmith.methods.parts.matrices import EMBEDDING_ROLES, in_dtype_of, in_float64
from weightsmith.methods.parts.registry import Base, method, per_expert, shared
from weightsmith.methods.parts.spectra import constant
from weightsmith.methods.parts.task_vectors import merge_vectors

# What the authors' code does where a recipe says nothing: it masks no element.
_CODE = {"density": 1.0, "masked": "average", "epsilon": 1e-8}


@method(
    "ota",
    title="OTA-Merging with Fast Fisher Grafting",
    paper="OTA-Merging, 2025, arXiv:2509.11167",
    base=Base.OPTIONAL,
    statistics=("adam", "fisher", "gradients"),
    cost="O(N m n), and as much reading again for the second moments",
    generalises=("task_arithmetic", "ties"),
    presets={"reference": _CODE, "hf_ota": {**_CODE, "power": 1.0, "epsilon": 1e-28}},
)
@dataclass(frozen=True, slots=True)
class Ota:
    """Average of grafted task vectors in which every element has the weight of its second moment.

        s_i = v_i tau_i^2;   m_i = [s_i among the floor(density_i M) largest]       M elements of the scope
        tau = sum_i q_i m_i tau_i / sum_i q_i m_i,   q_i = w_i (v_i^power + epsilon);   theta = theta_0 + lambda tau

    v_i is Adam's second moment (exp_avg_sq) of expert i, dense or in one of the compressed forms of statistics
    files; a diagonal Fisher serves as well. Grafting reverts the elements that matter least to the base: the paper
    reports densities from .11 to .46 per expert, over the whole model (scope: model). Elements that no expert keeps
    are the base's (masked: base) or the mean of the experts (masked: average); which these are is read from the masks
    themselves, so a large epsilon cannot make a kept element pass for a masked one, as it can in the authors' code.
    `reduce: linear` takes the mean over all experts of what the masks left, `reduce: ties` the mean over those that
    agree with the elected sign; the authors' code leaves the masks out of both. `rescale` restores each masked task
    vector's size: largest singular value of matrices, largest column norm of embeddings and heads, root mean square of
    the rest. Without a base the experts are averaged in place of task vectors, and masks rank v alone. Tensors without
    statistics: the mean of task vectors with weights w_i.
    Preset reference has the defaults of the authors' code, which masks nothing, falls back to the mean of the experts,
    and adds 1e-8, far above usual v^power; preset hf_ota those of its file of that name, without grafting. Where its
    files graft, they keep s_i above a threshold of each expert and fall back to the base: density and `masked` here.
    """

    weight: tuple[float, ...] = per_expert(1.0, low=0.0, doc="factor of each expert's weights")
    density: tuple[float, ...] = per_expert(
        0.4, low=0.0, high=1.0, doc="share of each task vector's elements that grafting keeps"
    )
    power: float = shared(0.5, low=0.0, doc="exponent of the second moments; 0 weighs all alike")
    epsilon: float = shared(0.0, low=0.0, doc="added to every weight of an element that is kept")
    normalize: str = shared(
        "none",
        choices=("none", "model", "mean", "tensor_mean"),
        doc="divide each second moment by its Euclidean norm, or its mean, over the model; tensor_mean: each v^power "
        "by epsilon plus its mean over the tensor, which the authors' code calls global",
    )
    scope: str = shared("model", choices=("model", "tensor"), doc="over what densities are meant")
    reduce: str = shared(
        "curvature",
        choices=("curvature", "linear", "ties"),
        doc="how what the masks left is merged: weighted by v, averaged, or averaged after an election of signs",
    )
    masked: str = shared(
        "base",
        choices=("base", "average"),
        doc="elements that no expert keeps: the base's, or the mean of the experts",
    )
    rescale: str = shared(
        "none", choices=("none", "size"), doc="restore the size of each masked task vector"
    )
    scale: float = shared(1.0, key="lambda", doc="coefficient of the merged task vector")

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Graft, then average element by element."""
        vectors = [e if base is None else e - base for e in experts]
        if not site.statistics:
            return self._placed(base, weighted_average(vectors, normalized(self.weight)))
        rule = self.normalize if self.normalize != "tensor_mean" else "none"
        moments = [scaled(squares(s), rule, site, i) for i, s in enumerate(site.statistics)]
        roots = [sqrt(squares(s)) for s in site.statistics]
        ranked = (
            roots if base is None else [r * abs(v) for r, v in zip(roots, vectors, strict=True)]
        )
        masks = [
            self._mask(r, d, site.over(self.scope, "mask", i, d))
            for i, (r, d) in enumerate(zip(ranked, self.density, strict=True))
        ]
        if self.rescale == "size":
            vectors = [
                v
                if m is None
                else whole(SizeOf(site.role, len(site.shape), site.name), where(m, v, 0.0), v)
                for v, m in zip(vectors, masks, strict=True)
            ]
        merged = self._reduced(vectors, moments, masks, site, has_base=base is not None)
        present = [m for m in masks if m is not None]
        if len(present) == len(masks):
            anyone = reduce(operator.or_, present)
            keeps_base = self.masked == "base" and base is not None
            merged = where(anyone, merged, 0.0 if keeps_base else _mean(experts, base))
        return self._placed(base, merged)

    def _mask(self, ranked: Value, density: float, extent: Extent) -> Value | None:
        """Mask of the elements that are kept; None where all are."""
        if density >= 1.0:
            return None
        return above(ranked, largest_share(ranked, density, extent))

    def _reduced(
        self,
        vectors: Sequence[Value],
        moments: Sequence[Value],
        masks: Sequence[Value | None],
        site: Site,
        *,
        has_base: bool,
    ) -> Value:
        if self.reduce == "curvature":
            return self._by_curvature(vectors, moments, masks, site)
        if not has_base:
            raise RecipeError(
                f"ota: reduce {self.reduce} merges task vectors and needs a base; give `base_model:`, or leave it out."
            )
        weights = normalized(self.weight)
        kept = [v if m is None else where(m, v, 0.0) for v, m in zip(vectors, masks, strict=True)]
        if self.reduce == "linear":
            return weighted_average(kept, weights)
        return merge_vectors(kept, weights, site=site, normalize="signed", zero_sum="zero")

    def _by_curvature(
        self,
        vectors: Sequence[Value],
        moments: Sequence[Value],
        masks: Sequence[Value | None],
        site: Site,
    ) -> Value:
        weights = []
        for moment, mask, factor in zip(moments, masks, self.weight, strict=True):
            weight = power(moment, self.power)
            if self.normalize == "tensor_mean":
                weight = weight / apply(MeanAbove(site.numel, self.epsilon), total(weight))
            weight = weight + self.epsilon if self.epsilon > 0.0 else weight
            weight = weight if factor == 1.0 else weight * factor
            weights.append(weight if mask is None else where(mask, weight, 0.0))
        if len(vectors) > 1 and any(mask is not None for mask in masks):
            # Elements that are kept but have no weight anywhere count equally among those that keep them.
            is_weighed = reduce(maximum, weights) > 0.0
            weights = [
                where(is_weighed, w, 1.0 if m is None else where(m, 1.0, 0.0))
                for w, m in zip(weights, masks, strict=True)
            ]
        return element_average(vectors, weights)

    def _placed(self, base: Value | None, merged: Value) -> Value:
        merged = merged if self.scale == 1.0 else merged * self.scale
        return merged if base is None else base + merged


@dataclass(frozen=True, slots=True)
class MeanAbove:
    """sum / count + constant; 1 where that is 0, so that zeros stay zero."""

    count: int
    constant: float

    def __call__(self, whole_sum: Any) -> Any:
        """One number."""
        mean = whole_sum / max(self.count, 1) + self.constant
        return scalars.where(mean > 0, mean, 1.0)


def _mean(experts: Sequence[Value], base: Value | None) -> Value:
    mean = weighted_average(experts, [1.0 / len(experts)] * len(experts))
    return mean if base is None else mean - base


@dataclass(frozen=True, slots=True)
class SizeOf:
    """A masked array scaled to the size that the whole one had; zeros stay zero.

    Size is the largest singular value of matrices (the largest of a stack's), the largest column norm of embeddings and
    heads, and the Euclidean norm of everything else. Constant factors cancel.
    """

    role: str
    axes: int
    tensor: str = field(default="", repr=False)

    def __call__(self, linalg: Any, masked: Any, before: Any) -> Any:
        """Array of the same shape and dtype."""
        now = self._size(linalg, in_float64(linalg, masked))
        then = self._size(linalg, in_float64(linalg, before))
        factor = then / now if constant(now) > 0.0 else 1.0
        return in_dtype_of(masked, in_float64(linalg, masked) * factor)

    def _size(self, linalg: Any, array: Any) -> Any:
        largest = constant(abs(array).max()) if 0 not in array.shape else 0.0
        if not 0.0 < largest < float("inf"):
            return 0.0
        unit = array / largest
        if self.role in EMBEDDING_ROLES and self.axes == 2:
            return largest * roots(linalg, (unit * unit).sum(0)).max()
        if self.axes < 2:
            return largest * linalg.sqrt((unit * unit).sum())
        stack = unit.reshape((-1, *unit.shape[-2:])) if self.axes == 3 else None
        stack = unit.reshape((1, unit.shape[0], -1)) if stack is None else stack
        m, n = stack.shape[-2:]
        turned = stack.swapaxes(-1, -2)
        grams = stack @ turned if m <= n else turned @ stack
        sizes = linalg.linalg.eigvalsh(without_gradient(grams))[:, -1]
        gram = grams[int(sizes.argmax())]
        if without_gradient(gram) is gram:
            return largest * math.sqrt(sizes.max())
        return largest * linalg.sqrt(directions(linalg, gram, 0.0, tensor=self.tensor).values[0])
