"""TIES-Merging: trim, elect signs, merge what agrees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

from weightsmith.graph import Site, Value, maximum, minimum, value, where
from weightsmith.methods.parts.registry import Base, method
from weightsmith.methods.parts.task_vectors import (
    agreement,
    density_parameter,
    disjoint_mean,
    keep_largest,
    lambda_parameter,
    normalize_parameter,
    rescale_floor_parameter,
    rescale_parameter,
    restore_l1,
    task_vectors,
    weigh,
    weight_parameter,
    where_they_agree,
    zero_sum_parameter,
)
from weightsmith.methods.parts.ties_elsewhere import (
    ABOUT_PRESETS,
    PRESETS,
    agreeing_parameter,
    keep_at_least_parameter,
    trim_count_parameter,
    trim_scope_parameter,
    vote_parameter,
    weight_stage_parameter,
)


@method(
    "ties",
    title="TIES-Merging",
    paper="Yadav et al., NeurIPS 2023, arXiv:2306.01708",
    base=Base.REQUIRED,
    presets=PRESETS,
    about_presets=ABOUT_PRESETS,
)
@dataclass(frozen=True, slots=True)
class Ties:
    """Merge task vectors without the interference of small and of contradicting changes.

        tau^_i = the floor(density N) elements of largest |tau_i|, N over the whole model; zero elsewhere
        g = sign(sum_i w_i tau^_i)                                           elected sign
        tau = sum_{i: sign = g} w_i tau^_i / sum_{i: sign = g} |w_i|         disjoint mean
        theta = theta_0 + lambda tau

    The paper has w_i = 1, density 0.2 and lambda 1 without validation data. Of equal magnitudes those of lowest rank
    are kept (`equal_magnitudes`; per tensor or row, of lowest index): exactly floor(density N) in all. Where task
    vectors cancel the paper's sign is 0 and the base stays. Zeros never vote and never count. The authors' three
    disjoint merges are dis-mean (the default), dis-sum (normalize: none) and dis-max (agreeing: max), of which the
    last takes the w_i tau^_i of largest magnitude among those that agree. `trim_scope: row` keeps its share in each row
    (last axis). What other code of this name does otherwise has a parameter each, and a preset for each tool puts them
    together.
    """

    weight: tuple[float, ...] = weight_parameter()
    density: tuple[float, ...] = density_parameter(0.2, "share of elements that the trim keeps")
    normalize: str = normalize_parameter("absolute", count=True)
    agreeing: str = agreeing_parameter()
    rescale: str = rescale_parameter("none", random=False)
    rescale_floor: float = rescale_floor_parameter()
    scale: float = lambda_parameter()
    trim_scope: str = trim_scope_parameter()
    trim_count: str = trim_count_parameter()
    keep_at_least: int = keep_at_least_parameter()
    vote: str = vote_parameter()
    weight_stage: str = weight_stage_parameter()
    zero_sum: str = zero_sum_parameter(majority=True)

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Trim, elect, merge, and add to the base."""
        base, deltas = task_vectors(base, experts)
        trimmed = [self._trim(i, delta, site) for i, delta in enumerate(deltas)]
        weighted = weigh(trimmed, self.weight)
        agrees = self._elect(trimmed, weighted, site)
        merged = self._merge(weighted, agrees)
        return base + (merged if self.scale == 1.0 else merged * self.scale)

    def _trim(self, expert: int, delta: Value, site: Site) -> Value:
        """tau^_i."""
        density = self.density[expert]
        extent = site.over(self.trim_scope, "trim", expert, density)
        kept = keep_largest(
            delta,
            density,
            extent,
            site,
            at_least=self.keep_at_least,
            one_more=self.trim_count == "one_more",
        )
        if self.rescale != "l1":
            return kept
        return restore_l1(kept, delta, density, self.rescale_floor, extent)

    def _elect(
        self, trimmed: Sequence[Value], weighted: Sequence[Value], site: Site
    ) -> list[Value]:
        """Where the sign of each task vector is g."""
        ballots = weighted if self.weight_stage == "before" else trimmed
        return agreement(ballots, self.zero_sum, self.vote, site=site)

    def _merge(self, weighted: Sequence[Value], agrees: Sequence[Value]) -> Value:
        """What stands for those that agree."""
        agreeing = where_they_agree(weighted, agrees)
        if self.agreeing == "mean":
            return disjoint_mean(agreeing, agrees, self.weight, self.normalize)
        high, low = reduce(maximum, agreeing, value(0.0)), reduce(minimum, agreeing, value(0.0))
        # Weights of both signs after the election leave values of both signs.
        return where(high >= -low, high, low)
