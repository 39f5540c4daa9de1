"""PCB-Merging: weigh and drop every element by a competition within and between the tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.graph import (
    ModelStatistic,
    Number,
    Scalar,
    Site,
    Value,
    above,
    add_all,
    apply,
    clamp,
    exp,
    floor_of_share,
    largest,
    largest_share,
    maximum,
    peak,
    scalars,
    sign,
    total,
    value,
    where,
)
from weightsmith.methods.parts.registry import Base, method, shared
from weightsmith.methods.parts.task_vectors import lambda_parameter, task_vectors, weight_parameter

_CODE = {"density": 0.2}
# Spreads below it are no normal numbers in float32, nor are their reciprocals.
_SMALLEST = 2.0**-126


@method(
    "pcb",
    title="PCB-Merging",
    paper="Du et al., NeurIPS 2024, arXiv:2410.02396",
    base=Base.REQUIRED,
    presets={
        "pcb-merging": {**_CODE, "between": "raw", "clamp": 1e-4},
        "pcb": {"density": 0.05, "between": "normalised", "clamp": 0.01},
        "pcb_es": {"density": 0.05, "between": "pairs", "clamp": 0.01},
    },
    cost="O(N^2 m n); between raw or normalised: O(N m n)",
)
@dataclass(frozen=True, slots=True)
class Pcb:
    """A mean of task vectors with a weight for every element of every task.

        Norm(x) = (x - min x) / (max x - min x)                 over the whole model; 0 where x is constant
        alpha_i = Softmax(N Norm(tau_i tau_i))                  within a task, over the model
        beta_i = sum_j Softmax(Norm(tau_i tau_j))               between tasks, j = i included
        s_i = Norm(alpha_i beta_i, all but its floor(density P) largest elements of the P set to 0)
        theta = theta_0 + lambda sum_i s_i w_i tau_i / sum_i s_i            (0 / 0 = 0)

    That is the paper (between: softmax). The authors' three files differ from it and from each other; each is a
    preset, with m_i = clip(|tau_i|, its `clamp` and 1 - `clamp` quantiles), c_i = sign(tau_i) m_i and
    n_i = sign(tau_i) Norm(m_i):

        alpha_i = exp(N Norm(m_i)^2)
        beta_i = tanh(tau_i sum_j tau_j)   preset pcb-merging     tanh(tau_i sum_j n_j)   preset pcb
                 sum_j tanh(n_i n_j)       preset pcb_es
        s_i = Norm(max(alpha_i beta_i, its 1 - density quantile)), and c_i takes the place of tau_i

    so what is kept last weighs 0. Quantiles are the authors': elements number floor(P q) and floor(P (1 - q) - 1)
    in ascending order, counted from 0. The paper's density is 0.2 (0.1 for T5, 0.05 for ViT). One expert keeps its
    task vector where s is not 0. Constant task vectors and scores give finite weights. Products of task vectors have
    the precision of the weights: in float32 those of changes below about 1e-18 lose digits, and below 1e-22 they are
    zero. Model scope, up to five passes; cost O(N^2) per weight for softmax and pcb_es.
    """

    weight: tuple[float, ...] = weight_parameter()
    density: float = shared(
        0.2, low=0.0, high=1.0, doc="r, the share of the model with the best scores of a task"
    )
    between: str = shared(
        "softmax",
        choices=("softmax", "raw", "normalised", "pairs"),
        doc="the competition between tasks: the paper's, or that of one of the authors' files",
    )
    clamp: float = shared(
        0.0, low=0.0, high=0.5, doc="share of magnitudes that is clipped at each end"
    )
    scale: float = lambda_parameter()

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Score, drop, weigh, and add to the base."""
        base, deltas = task_vectors(base, experts)
        clipped = [self._clipped(i, d, site) for i, d in enumerate(deltas)]
        if self.between == "softmax":
            vectors = [c.vector for c in clipped]
            scores = softmax_scores(vectors, site)
            weights = [renormalised(s, self.density, site, i) for i, s in enumerate(scores)]
        else:
            scores = self._code_scores(deltas, clipped)
            weights = [tail_weights(s, self.density, site, i) for i, s in enumerate(scores)]
        merged = add_all(
            [
                s * c.vector if w == 1.0 else s * (c.vector * w)
                for s, c, w in zip(weights, clipped, self.weight, strict=True)
            ]
        )
        divisor = add_all(weights)
        merged = merged / where(divisor.equals(0.0), 1.0, divisor)
        return base + (merged if self.scale == 1.0 else merged * self.scale)

    def _clipped(self, task: int, delta: Value, site: Site) -> Clipped:
        magnitude = abs(delta)
        low, high = (
            largest(magnitude, rule, site.over_model(name, task, self.clamp)).magnitude
            for name, rule in (
                ("lower clamp", LowerQuantile(self.clamp)),
                ("upper clamp", UpperQuantile(self.clamp)),
            )
        )
        if self.clamp > 0.0:
            magnitude = clamp(magnitude, low, high)
            delta = sign(delta) * magnitude
        return Clipped(delta, magnitude, low, high)

    def _code_scores(self, deltas: Sequence[Value], clipped: Sequence[Clipped]) -> list[Value]:
        n = len(deltas)
        norms = [normalised(c.magnitude, c.low, c.high) for c in clipped]
        signed = [sign(c.vector) * norm for c, norm in zip(clipped, norms, strict=True)]
        together = add_all(deltas if self.between == "raw" else signed)
        scores = []
        for i in range(n):
            if self.between == "pairs":
                between = add_all([tanh(signed[i] * other) for other in signed])
            else:
                between = tanh(deltas[i] * together)
            # exp(-N) leaves every later quotient as it is, and keeps the powers of many tasks finite.
            scores.append(exp((norms[i] * norms[i] - 1.0) * float(n)) * between)
        return scores


@dataclass(frozen=True, slots=True)
class Clipped:
    """A task vector with clipped magnitudes and the smallest and largest of them."""

    vector: Value
    magnitude: Value
    low: Scalar
    high: Scalar


@dataclass(frozen=True, slots=True)
class LowerQuantile:
    """Rank from the top of element floor(N q) in ascending order."""

    q: float

    def __call__(self, population: int) -> int:
        """k of the k-th largest."""
        return population - min(floor_of_share(self.q, population), population - 1)


@dataclass(frozen=True, slots=True)
class UpperQuantile:
    """Rank from the top of element floor(N (1 - q) - 1) in ascending order."""

    q: float

    def __call__(self, population: int) -> int:
        """k of the k-th largest."""
        above = population + floor_of_share(-self.q, population)
        return population - max(above - 1, 0)


@dataclass(frozen=True, slots=True)
class FromBelow:
    """Rank from the bottom, as the rank among the magnitudes of negative numbers, of element floor(N (1 - r))."""

    r: float

    def __call__(self, population: int) -> int:
        """k of the k-th smallest."""
        below = population + floor_of_share(-self.r, population)
        return min(below, population - 1) + 1


def softmax_scores(deltas: Sequence[Value], site: Site) -> list[Value]:
    """alpha_i beta_i up to a factor of each task, which the norms of the weights cancel.

    With e_ij = exp(Norm(tau_i tau_j) - 1), beta_i is the sum of e_ij / sum e_ij, and alpha_i is e_ii^N.
    """
    n = len(deltas)
    shares: dict[tuple[int, int], Value] = {}
    within = []
    for i in range(n):
        for j in range(i, n):
            product = site.over_model(f"product with {site.identity(j)}", i)
            power = exp(_below_peak(deltas[i] * deltas[j], product))
            share = apply(scalars.divide, 1.0, total(power, product.part("total")))
            shares[i, j] = shares[j, i] = power * share
            if i == j:
                within.append(_whole_power(power, n))
    return [w * add_all([shares[i, j] for j in range(n)]) for i, w in enumerate(within)]


def renormalised(score: Value, density: float, site: Site, task: int) -> Value:
    """Norm of non-negative scores of which all but the floor(density N) largest are set to 0."""
    if density >= 1.0:
        return _min_max(score, site.over_model("score", task), otherwise=1.0)
    threshold = largest_share(score, density, site.over_model("kept scores", task, density))
    factor = apply(_reciprocal, peak(score, site.over_model("score", task).part("peak")))
    return where(above(score, threshold), score * factor, 0.0)


def tail_weights(score: Value, density: float, site: Site, task: int) -> Value:
    """Norm(max(s, t)), t being element floor(N (1 - density)) of s in ascending order; 1 for all that is t where
    nothing is above it.

    Scores have a sign. The k-th largest is a magnitude of the positive ones, or of the negative ones counted from
    below, or 0.
    """
    above_zero, below_zero = maximum(score, 0.0), maximum(-score, 0.0)
    from_below = FromBelow(density)
    kept = site.over_model("kept scores", task, density)
    positive = largest(above_zero, FromAbove(from_below), kept.part("positive")).magnitude
    negative = largest(below_zero, from_below, kept.part("negative")).magnitude
    threshold = apply(_signed, positive, negative)
    top = peak(score, site.over_model("score", task).part("peak"))
    spread = normalised(maximum(score, threshold), threshold, top)
    is_flat = value(apply(_is_flat, threshold, top)) > 0.0
    return where(is_flat & (score >= threshold) & (score > 0.0), 1.0, spread)


@dataclass(frozen=True, slots=True)
class FromAbove:
    """The rank from the top of the element that another rule counts from the bottom."""

    below: FromBelow

    def __call__(self, population: int) -> int:
        """k of the k-th largest."""
        return population - self.below(population) + 1


def _signed(positive: Any, negative: Any) -> Any:
    return scalars.where(positive > 0, positive, -negative)


def _is_flat(low: Any, high: Any) -> Any:
    return scalars.where(high <= low, 1.0, 0.0)


def normalised(x: Value, low: Number, high: Number) -> Value:
    """(x - low) / (high - low); 0 where they are equal."""
    return (x - low) / apply(_spread, low, high)


def _spread(low: Any, high: Any) -> Any:
    return scalars.where(high == low, 1.0, high - low)


def _min_max(x: Value, extent: ModelStatistic, otherwise: float = 0.0) -> Value:
    low, high = -peak(-x, extent.part("least")), peak(x, extent.part("peak"))
    norm = normalised(x, low, high)
    return norm if otherwise == 0.0 else norm + apply(_is_flat, low, high) * otherwise


def _below_peak(x: Value, extent: ModelStatistic) -> Value:
    """Norm(x) - 1, with one product for each element; 0 where x is constant."""
    low, high = -peak(-x, extent.part("least")), peak(x, extent.part("peak"))
    return (x - high) * apply(_steepness, low, high)


def _steepness(low: Any, high: Any) -> Any:
    spread = high - low
    return 1.0 / scalars.where(spread < _SMALLEST, _SMALLEST, spread)


def _whole_power(x: Value, n: int) -> Value:
    """x^n for n > 0, by squaring."""
    if n == 1:
        return x
    half = _whole_power(x, n // 2)
    return half * half * x if n % 2 else half * half


def _reciprocal(x: Any) -> Any:
    return 1.0 / scalars.where(x == 0, 1.0, x)


def tanh(x: Value) -> Value:
    """Hyperbolic tangent, from a series where exp(-2|x|) is so near 1 that the difference would lose digits."""
    square = x * x
    series = x * (
        1.0 + square * (-1 / 3 + square * (2 / 15 + square * (-17 / 315 + square * (62 / 2835))))
    )
    power = exp(abs(x) * -2.0)
    return where(abs(x) < 0.1, series, sign(x) * ((1.0 - power) / (1.0 + power)))
