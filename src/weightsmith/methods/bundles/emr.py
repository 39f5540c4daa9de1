"""EMR-Merging: elect one vector, mask it for each task, rescale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.graph import (
    Scalar,
    Site,
    Value,
    add_all,
    apply,
    maximum,
    scalars,
    sign,
    total,
    value,
    where,
)
from weightsmith.methods.parts.multi_task import PARTS, part_parameter, task_number, task_parameter
from weightsmith.methods.parts.registry import Base, method, shared
from weightsmith.methods.parts.task_vectors import task_vectors


@method(
    "emr",
    title="EMR-Merging",
    paper="Huang et al., NeurIPS 2024, arXiv:2405.17461",
    base=Base.REQUIRED,
    presets={"reference": {"rescale": "mean", "zero_sum": "negative"}},
)
@dataclass(frozen=True, slots=True)
class Emr:
    """One task's weights, rebuilt from an elected vector, that task's mask and its rescaler.

        gamma = sign(sum_i tau_i);   tau_uni = gamma max_{i: sign tau_i = gamma} |tau_i|              elect
        M_t = [ tau_t tau_uni > 0 ]                                                                   mask
        lambda_t = sum |tau_t| / sum |M_t tau_uni|                   both over the whole model        rescale
        theta_t = theta_0 + lambda_t M_t tau_uni

    The rebuilt task vector has the L1 norm of tau_t. One expert, and copies of one expert, are rebuilt exactly up
    to the rounding of theta_0 + (theta_t - theta_0). Where task vectors cancel nothing is elected; a task whose
    vector opposes tau_uni everywhere gets lambda_t = 0. Preset `reference` is the authors' code: it elects minus
    where the sum is zero, and its lambda_t is a ratio of sums of every tensor's mean, so that a bias weighs as
    much as a matrix. `weightsmith bundle create` stores theta_0, tau_uni, the masks and the rescalers. Model
    scope; cost O(N) per weight, two passes.
    """

    task: str = task_parameter()
    rescale: str = shared(
        "norm",
        choices=("norm", "mean", "none"),
        doc="lambda_t from L1 norms of the whole model, from the sum of every tensor's mean magnitude, or 1",
    )
    zero_sum: str = shared(
        "zero", choices=("zero", "negative"), doc="sign elected where the task vectors cancel"
    )
    part: str = part_parameter((*PARTS, "scale"))

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Elect, mask, rescale, and add to the base."""
        base, deltas = task_vectors(base, experts)
        elected = elected_vector(deltas, self.zero_sum)
        if self.part == "shared":
            return elected
        t = task_number(self.task, len(experts), site, "emr")
        delta = deltas[t]
        mask = sign(delta) * sign(elected) > 0.0
        if self.part == "mask":
            return mask
        masked = where(mask, elected, 0.0)
        scale = self._rescaler(t, delta, masked, site)
        if self.part == "scale":
            return value(1.0 if scale is None else scale)
        return base + (masked if scale is None else masked * scale)

    def _rescaler(self, task: int, delta: Value, masked: Value, site: Site) -> Scalar | None:
        if self.rescale == "none":
            return None
        sizes = [abs(delta), abs(masked)]
        if self.rescale == "mean":
            sizes = [size * (1.0 / max(site.numel, 1)) for size in sizes]
        own = total(sizes[0], site.over_model("task vector", task))
        rebuilt = total(sizes[1], site.over_model("rebuilt vector", task))
        return apply(scalars.divide, own, rebuilt)


def elected_vector(deltas: Sequence[Value], zero_sum: str) -> Value:
    """tau_uni: the elected sign with the largest magnitude of the task vectors that have it."""
    total_vector = add_all(deltas)
    gamma = sign(total_vector) if zero_sum == "zero" else where(total_vector > 0.0, 1.0, -1.0)
    agreeing = [where(sign(d).equals(gamma), abs(d), 0.0) for d in deltas]
    largest = agreeing[0]
    for magnitude in agreeing[1:]:
        largest = maximum(largest, magnitude)
    return gamma * largest
