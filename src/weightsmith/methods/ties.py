"""TIES-Merging: trim, elect signs, merge what agrees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from weightsmith.methods.registry import REQUIRED, Base, method, shared
from weightsmith.methods.task_vectors import (
    agreement,
    density_parameter,
    fuse,
    int8_mask_parameter,
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
from weightsmith.tensors.graph import Scope, Site, Value, maximum, minimum, value, where


@method(
    "ties",
    title="TIES-Merging",
    paper="Yadav et al., NeurIPS 2023, arXiv:2306.01708",
    base=Base.REQUIRED,
    presets={
        "mergekit": {
            "weight": REQUIRED,
            "density": 1.0,
            "trim_scope": "tensor",
            "keep_at_least": 1,
            "normalize": "signed",
            "zero_sum": "positive",
            "rescale_floor": 1e-7,
        }
    },
)
@dataclass(frozen=True, slots=True)
class Ties:
    """Merge task vectors without the interference of small and of contradicting changes.

        tau^_i = the floor(density N) elements of largest |tau_i|, N over the whole model; zero elsewhere
        g = sign(sum_i w_i tau^_i)                                           elected sign
        tau = sum_{i: sign = g} w_i tau^_i / sum_{i: sign = g} |w_i|         disjoint mean (normalize: none for the sum)
        theta = theta_0 + lambda tau

    The paper has w_i = 1, density 0.2 and lambda 1 without validation data. Equal magnitudes are kept in the
    order of flat index, so exactly floor(density N) are kept (the authors' code keeps one more, and all equal
    ones). Where task vectors cancel the paper's sign is 0 and the base stays; the authors' code takes the
    majority sign of the model, mergekit +. Zeros never vote and never count. mergekit trims per tensor, keeps
    at least one element of each, and divides by signed weights, which can flip signs if some are negative. The
    authors' three disjoint merges are dis-mean (the default), dis-sum (normalize: none) and dis-max (agreeing: max),
    of which the last takes the w_i tau^_i of largest magnitude among those that agree.
    """

    weight: tuple[float, ...] = weight_parameter()
    density: tuple[float, ...] = density_parameter(0.2, "share of elements that the trim keeps")
    normalize: str = normalize_parameter("absolute")
    agreeing: str = shared(
        "mean",
        choices=("mean", "max"),
        doc="what stands for those that agree: their mean (or sum, see normalize), or the largest magnitude",
    )
    rescale: str = rescale_parameter("none", random=False)
    rescale_floor: float = rescale_floor_parameter()
    scale: float = lambda_parameter()
    trim_scope: str = shared(
        "model", choices=("model", "tensor"), doc="over what the largest elements are sought"
    )
    keep_at_least: int = shared(
        0, low=0, doc="elements that a trim per tensor leaves at any density above 0"
    )
    zero_sum: str = zero_sum_parameter(majority=True)
    int8_mask: bool = int8_mask_parameter()

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Trim, elect, merge, and add to the base."""
        base, deltas = task_vectors(base, experts)
        scope = Scope.MODEL if self.trim_scope == "model" else Scope.TENSOR
        trimmed = []
        for delta, density in zip(deltas, self.density, strict=True):
            kept = keep_largest(delta, density, scope, site, at_least=self.keep_at_least)
            if self.rescale == "l1":
                kept = restore_l1(kept, delta, density, self.rescale_floor, scope)
            trimmed.append(kept)
        if self.agreeing == "max":
            merged = self._largest(trimmed)
            return base + (merged if self.scale == 1.0 else merged * self.scale)
        return fuse(
            base,
            trimmed,
            self.weight,
            normalize=self.normalize,
            scale=self.scale,
            zero_sum=self.zero_sum,
        )

    def _largest(self, trimmed: Sequence[Value]) -> Value:
        weighted = [v if w == 1.0 else v * w for v, w in zip(trimmed, self.weight, strict=True)]
        agrees = agreement(weighted, self.zero_sum)
        kept = [where(a, v, 0.0) for a, v in zip(agrees, weighted, strict=True)]
        # What agrees has one sign, so one of the two is 0.
        return reduce(maximum, kept, value(0.0)) + reduce(minimum, kept, value(0.0))
