"""Averages over the checkpoints of one run; the experts are in order of time, the oldest first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.graph import Site, Value
from weightsmith.methods.averages.linear import normalized, weighted_average
from weightsmith.methods.parts.registry import Base, method, shared


@method(
    "lawa",
    title="LAWA (latest weight averaging)",
    paper="Kaddour, 2022, arXiv:2209.14981",
    base=Base.IGNORED,
    generalises=("soup",),
)
@dataclass(frozen=True, slots=True)
class Lawa:
    """Mean of the k latest checkpoints.

        theta = (1/k) sum_{j = n-k+1..n} theta_j

    With fewer than k checkpoints all are averaged, as when the window has not filled yet; k = 1 is the last
    one. Exactly k are averaged (the paper's scripts take k + 1). k = 10 is the default of the authors'
    repository.
    """

    k: int = shared(10, low=1, doc="number of latest checkpoints in the mean")

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Average the window; the base plays no part."""
        window = experts[-self.k :]
        return weighted_average(window, [1.0 / len(window)] * len(window))


@method(
    "ema",
    title="Exponential moving average",
    paper="Kaddour, 2022, arXiv:2209.14981",
    base=Base.IGNORED,
    generalises=("soup",),
)
@dataclass(frozen=True, slots=True)
class Ema:
    """Exponential moving average over checkpoints.

        a_1 = theta_1;   a_j = a_{j-1} + (1 - d) (theta_j - a_{j-1})
        weights: d^(n-1) for the first, (1 - d) d^(n-j) for the j-th

    With `bias_correction` the average starts at zero and is divided by 1 - d^n, so that the first checkpoint
    weighs (1 - d) d^(n-1) / (1 - d^n) and has no special part. d = 0.9 per checkpoint is the default of the
    authors' repository; d = 0 gives the last checkpoint, d = 1 the first (with bias correction the plain mean,
    its limit).
    """

    decay: float = shared(
        0.9, low=0.0, high=1.0, doc="d, the share that the past keeps at each checkpoint"
    )
    bias_correction: bool = shared(False, doc="start from zero and divide by 1 - d^n")

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Average the checkpoints; the base plays no part."""
        return weighted_average(experts, self.weights(len(experts)))

    def weights(self, n: int) -> list[float]:
        """Weight of each of n checkpoints; they sum to 1."""
        if self.bias_correction:
            return normalized([self.decay ** (n - 1 - j) for j in range(n)])
        recent = [(1.0 - self.decay) * self.decay ** (n - 1 - j) for j in range(1, n)]
        return [self.decay ** (n - 1), *recent]


@method(
    "wma",
    title="Linearly weighted moving average",
    paper="Li et al., 2025, arXiv:2505.12082",
    base=Base.IGNORED,
)
@dataclass(frozen=True, slots=True)
class Wma:
    """Average in which later checkpoints weigh more, linearly.

    theta = sum_j j theta_j / sum_j j,   j = 1..n
    """

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Average the checkpoints; the base plays no part."""
        return weighted_average(experts, normalized([j + 1.0 for j in range(len(experts))]))
