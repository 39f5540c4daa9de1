"""TIES-Merging: trim, elect signs, merge what agrees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from weightsmith.graph.graph import Value, maximum, minimum, value, where
from weightsmith.graph.site import Site
from weightsmith.methods.parts.registry import REQUIRED, Base, method, shared
from weightsmith.methods.parts.task_vectors import (
    Election,
    agreement,
    density_parameter,
    fuse,
    keep_largest,
    lambda_parameter,
    normalize_parameter,
    rescale_floor_parameter,
    rescale_parameter,
    restore_l1,
    task_vectors,
    weigh,
    weight_parameter,
    zero_sum_parameter,
)

_REFERENCE = {"trim_count": "one_more", "zero_sum": "majority"}


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
        },
        "reference": _REFERENCE,
        "fusionbench": {**_REFERENCE, "normalize": "none", "lambda": 0.3},
        "peft": {
            "weight": REQUIRED,
            "density": REQUIRED,
            "trim_scope": "tensor",
            "zero_sum": "positive",
            "weight_stage": "after",
            "normalize": "count",
        },
        "sd-mecha": {"trim_scope": "tensor", "trim_count": "one_more", "vote": "count"},
    },
)
@dataclass(frozen=True, slots=True)
class Ties:
    """Merge task vectors without the interference of small and of contradicting changes.

        tau^_i = the floor(density N) elements of largest |tau_i|, N over the whole model; zero elsewhere
        g = sign(sum_i w_i tau^_i)                                           elected sign
        tau = sum_{i: sign = g} w_i tau^_i / sum_{i: sign = g} |w_i|         disjoint mean (normalize: none for the sum)
        theta = theta_0 + lambda tau

    The paper has w_i = 1, density 0.2 and lambda 1 without validation data. Of equal magnitudes those of lowest rank
    are kept (`equal_magnitudes`; per tensor or row, of lowest index): exactly floor(density N) in all. Where task
    vectors cancel the paper's sign is 0 and the base stays. Zeros never vote and never count. The authors' three
    disjoint merges are dis-mean (the default), dis-sum (normalize: none) and dis-max (agreeing: max), of which the
    last takes the w_i tau^_i of largest magnitude among
    those that agree.

    What goes by this name elsewhere differs, and each difference has a parameter. Presets put them together:

        reference    the authors' code: keeps one element more; cancelling ones take the majority sign of the model
        fusionbench  the same, the sum instead of the mean, lambda 0.3
        mergekit     trims per tensor, keeps at least one element of each; cancelling ones take +; divides by signed
                     weights, which can flip signs if some are negative
        peft         what PEFT does to adapters that were multiplied out (`ties_svd`): trims per tensor, elects without
                     weights, + where they cancel, weighs after the election and divides by the number that agrees
                     (its `ties` does so to the factors A and B, each with the square root of the weight)
        sd-mecha     trims per tensor, one element more, and counts signs instead of adding values

    The three that keep one element more keep all that are equal to it, too, and sd-mecha rounds density N up before;
    here exactly floor(density N) + 1 are kept. `trim_scope: row` keeps its share in each row (last axis).
    """

    weight: tuple[float, ...] = weight_parameter()
    density: tuple[float, ...] = density_parameter(0.2, "share of elements that the trim keeps")
    normalize: str = normalize_parameter("absolute", count=True)
    agreeing: str = shared(
        "mean",
        choices=("mean", "max"),
        doc="what stands for those that agree: their mean (or sum, see normalize), or the largest magnitude",
    )
    rescale: str = rescale_parameter("none", random=False)
    rescale_floor: float = rescale_floor_parameter()
    scale: float = lambda_parameter()
    trim_scope: str = shared(
        "model", choices=("model", "tensor", "row"), doc="over what the largest elements are sought"
    )
    trim_count: str = shared(
        "floor",
        choices=("floor", "one_more"),
        doc="how many are kept: floor(density N), or one more; all at density 1, none at density 0",
    )
    keep_at_least: int = shared(
        0, low=0, doc="elements that a trim per tensor or row leaves at any density above 0"
    )
    vote: str = shared(
        "mass",
        choices=("mass", "count"),
        doc="what elects a sign: the sum of the task vectors, or the sum of their signs",
    )
    weight_stage: str = shared(
        "before",
        choices=("before", "after"),
        doc="whether the election sees task vectors with their weights, or the weights come after it",
    )
    zero_sum: str = zero_sum_parameter(majority=True)

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Trim, elect, merge, and add to the base."""
        base, deltas = task_vectors(base, experts)
        trimmed = [
            self._trim(i, delta, density, site)
            for i, (delta, density) in enumerate(zip(deltas, self.density, strict=True))
        ]
        if self.agreeing == "max":
            merged = self._largest(trimmed, site)
            return base + (merged if self.scale == 1.0 else merged * self.scale)
        return fuse(
            base,
            trimmed,
            self.weight,
            site=site,
            normalize=self.normalize,
            scale=self.scale,
            zero_sum=self.zero_sum,
            election=self._election,
        )

    @property
    def _election(self) -> Election:
        return Election(self.vote, self.weight_stage)

    def _trim(self, expert: int, delta: Value, density: float, site: Site) -> Value:
        extent = site.over(self.trim_scope, "trim", expert, density)
        one_more = self.trim_count == "one_more"
        kept = keep_largest(
            delta, density, extent, site, at_least=self.keep_at_least, one_more=one_more
        )
        if self.rescale != "l1":
            return kept
        return restore_l1(kept, delta, density, self.rescale_floor, extent)

    def _largest(self, trimmed: Sequence[Value], site: Site) -> Value:
        weighted = weigh(trimmed, self.weight)
        ballots = self._election.ballots(trimmed, weighted)
        agrees = agreement(ballots, self.zero_sum, self.vote, site=site)
        kept = [where(a, v, 0.0) for a, v in zip(agrees, weighted, strict=True)]
        high, low = reduce(maximum, kept, value(0.0)), reduce(minimum, kept, value(0.0))
        # Weights of both signs after the election leave values of both signs.
        return where(high >= -low, high, low)
