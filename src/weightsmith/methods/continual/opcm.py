"""Orthogonal projection-based continual merging: fold one expert after another into a merge of constant size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from weightsmith.errors import RecipeError
from weightsmith.graph import (
    ModelStatistic,
    Site,
    Value,
    add_all,
    apply,
    dot,
    scalars,
    whole,
    without_gradient,
)
from weightsmith.methods.parts.matrices import embeddings_parameter, in_float64, others_parameter
from weightsmith.methods.parts.registry import Base, method, shared
from weightsmith.methods.parts.span import root
from weightsmith.methods.parts.spectra import ByMatrix, Decomposition, SpectralRules, constant
from weightsmith.methods.parts.task_vectors import task_vectors

# Share of the largest change below which a weight's is what arithmetic leaves of none.
_UNCHANGED = 1e-10

_RULES = (
    "others",
    "embeddings",
    "stacks",
    "kernels",
    "fused",
    "orientation",
    "exempt",
    "rank_tolerance",
    "alpha",
    "split",
)


@method(
    "opcm",
    title="OPCM (orthogonal projection-based continual merging)",
    paper="Tang et al., NeurIPS 2025, arXiv:2501.09522",
    base=Base.REQUIRED,
    presets={"fusionbench": {"split": "exclusive"}},
    cost="O(N m n min(m, n))",
)
@dataclass(frozen=True, slots=True)
class Opcm(SpectralRules):
    """Sum of task vectors, each without what the sum before it already does, at the mean length of a task vector.

        A_1 = tau_1;   A_t = A_(t-1) + tau~_t;   theta = theta_0 + A_N n / ||A_N||,   n = mean_i ||tau_i||
        tau~ = tau - U_r (U_r^T tau V_r) V_r^T - sum_(i >= r) (u_i^T tau v_i) u_i v_i^T,   A_(t-1) = U S V^T
        r = smallest number with  sum_(i < r) sigma_i >= alpha sum_i sigma_i

    Norms run over the whole model. In the paper's terms A_(t-1) = lambda_(t-1) (theta^(t-1) - theta_0) and
    lambda_t = ||A_t|| / n; the projection does not depend on lambda, so experts given together are folded in one
    go, in their order, and <A_(t-1), tau~_t> = 0. This is the thin form: singular vectors of value 0 are never needed,
    nor, unless rank_tolerance is given, those that the rounding of stored weights makes: up to sqrt(t) times what it
    makes of weights theta_0 + A_t / sqrt(t), which is known however many experts are folded in one go.
    Tensors that are no matrix, and embeddings, are added as they are (others: sum).

    To go on with a merge that was written before, give it as the first model and set `previous`: its count of
    experts, its lambda and its mean norm are read from the state in its folder (or are given as previous_count,
    previous_lambda and previous_norm). Its rounding to the stored dtype is the only difference to folding all at once:
    averages count the first model as often as it has experts, and a folder that was changed, had another base or other
    rules is refused.
    With split "exclusive" (preset fusionbench), r is one less, as in the authors' code, where alpha = 1 means r = 0.
    O((N - 1) m n min(m, n)) time; five matrices in float64. Raises RecipeError if the state is missing.
    """

    others: str = others_parameter("sum")
    embeddings: str = embeddings_parameter("sum")
    alpha: float = shared(
        0.5,
        low=0.0,
        high=1.0,
        doc="share of the singular values' sum that is shielded from new experts",
    )
    split: str = shared(
        "inclusive",
        choices=("inclusive", "exclusive"),
        doc="whether the direction that reaches alpha belongs to the shielded ones",
    )
    previous: bool = shared(
        False, doc="the first model is the result of an earlier merge by this method"
    )
    previous_count: int | None = shared(
        None,
        low=1,
        optional=True,
        doc="with previous: number of experts in it; none: from its state",
    )
    previous_lambda: float | None = shared(
        None, low=0.0, optional=True, doc="with previous: its lambda; none: from its state"
    )
    previous_norm: float | None = shared(
        None,
        low=0.0,
        optional=True,
        doc="with previous: its experts' mean norm; none: from its state",
    )

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Fold the experts and bring the sum to the mean length."""
        base, deltas = task_vectors(base, experts)
        count, factor, norm_sum = self._state(site)
        if self.previous and factor != 1.0:
            deltas[0] = deltas[0] * factor
        merged = self._folded(base, deltas, site, count)
        if merged is None:
            return base
        first = 1 if self.previous else 0
        new = deltas[first:]
        squares = [dot(d, d, site.over_model("expert", first + i)) for i, d in enumerate(new)]
        length = dot(merged, merged, site.over_model("merged"))
        return base + merged * apply(_rescale, length, count + len(new), norm_sum, *squares)

    def state(self, statistics: Mapping[ModelStatistic, float]) -> dict[str, float]:
        """What the next merge has to know, from the statistics of this one: count, lambda and norm."""
        count, _, norm_sum = self._state(None)
        norms = [v for k, v in statistics.items() if k.name == "expert"]
        count += len(norms)
        norm = (norm_sum + sum(v**0.5 for v in norms)) / count
        length = next(v for k, v in statistics.items() if k.name == "merged") ** 0.5
        return {
            "previous_count": count,
            "previous_lambda": length / norm if norm else 1.0,
            "previous_norm": norm,
        }

    def rules(self) -> dict[str, Any]:
        """The parameters that a merge which goes on with this one must share."""
        return {key: getattr(self, key) for key in _RULES}

    def _state(self, site: Site | None) -> tuple[int, float, float]:
        """Number, lambda and sum of norms of the experts in the first model; nothing without `previous`."""
        if not self.previous:
            return 0, 1.0, 0.0
        if (
            self.previous_count is None
            or self.previous_lambda is None
            or self.previous_norm is None
        ):
            where = "" if site is None else f" (tensor {site.name!r})"
            raise RecipeError(
                f"opcm is to go on with its first model{where}, but the state of that merge is not known: "
                "take a folder that opcm wrote, or give previous_count, previous_lambda and previous_norm."
            )
        return (
            self.previous_count,
            self.previous_lambda,
            self.previous_norm * self.previous_count,
        )

    def _folded(self, base: Value, deltas: list[Value], site: Site, count: int) -> Value | None:
        view = self.view(site)
        if view is not None:
            if len(deltas) == 1:
                return deltas[0]
            fold = Fold(self.alpha, self.split == "inclusive", self.how(site), max(1, count))
            return whole(ByMatrix(fold, view, site.name), *deltas, base)
        rule = self.rule(site)
        if rule == "base":
            return None
        if rule == "sum":
            return add_all(deltas)
        if count == 0:
            return add_all(deltas) / float(len(deltas))
        before, *new = deltas
        return add_all([before * float(count), *new]) / float(count + len(new))


def _rescale(square: Any, count: Any, norm_sum: Any, *squares: Any) -> Any:
    """n / ||A||; 0 where A is 0."""
    total = norm_sum
    for number in squares:
        total = total + root(number)
    return scalars.divide(total / count, root(square), 0.0)


@dataclass(frozen=True, slots=True)
class Fold:
    """A_N of several matrices in their order; the base, which says how they were rounded, comes last.

    The first matrix is A of `count` experts.
    """

    alpha: float
    inclusive: bool
    how: Decomposition
    count: int = 1

    def __call__(self, linalg: Any, matrices: list[Any]) -> Any:
        """Matrix of the same shape, in float64."""
        first, *others, base = matrices
        cutoff = self.how.cutoff(linalg, first)
        merged = in_float64(linalg, first)
        for count, delta in enumerate(others, start=self.count):
            floor = self.floor(linalg, merged, base, count)
            merged = merged + self.projected(
                linalg, merged, in_float64(linalg, delta), cutoff, floor
            )
        return merged

    def floor(self, linalg: Any, merged: Any, base: Any, count: int) -> float:
        """The largest singular value of the errors of A, the sum of `count` stored task vectors.

        Errors of different experts are independent, and those of each are as of weights whose change has the mean
        length. They follow from A and count alone, so that a merge that is continued finds what one at once does.
        """
        mean = without_gradient(merged) / sqrt(count)
        sizes = abs(mean)
        mean = linalg.where(sizes > _UNCHANGED * sizes.max(), mean, 0.0)
        (rounding,) = self.how.roundings(linalg, base, [mean])
        return sqrt(count) * rounding.strength

    def projected(
        self, linalg: Any, merged: Any, task: Any, cutoff: float, floor: float = 0.0
    ) -> Any:
        """tau~: the task without the leading block and the diagonal in the merged matrix's directions."""
        spectrum = self.how.spectrum(linalg, merged, tolerance=cutoff, floor=floor)
        if spectrum.rank == 0:
            return task
        shielded = self.shielded(spectrum.values)
        lead = spectrum.leading(shielded)
        block = ((lead.left.T @ task) @ lead.right.T) @ lead.right  # [shielded, inputs]
        rest = spectrum.only(slice(shielded, None)).separated()
        diagonal = ((rest.left.T @ task) * rest.right).sum(1)  # [rank - shielded]
        left = linalg.concatenate([lead.left, rest.left], 1)  # [outputs, rank]
        return task - left @ linalg.concatenate([block, diagonal[:, None] * rest.right])

    def shielded(self, values: Any) -> int:
        """r: how many of the falling singular values are shielded."""
        reached = values.cumsum(0)
        wanted = self.alpha * constant(reached[-1])
        if self.inclusive:
            below = int((reached < wanted * (1.0 - 1e-12)).sum())
            return min(below + 1, int(values.shape[0])) if self.alpha > 0.0 else 0
        above = reached > wanted * (1.0 + 1e-12)
        return int((~above).sum()) if bool(above.any()) else 0
