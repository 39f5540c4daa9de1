"""Singular value calibration: weaken the directions of a merge in which several tasks were counted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.errors import RecipeError
from weightsmith.graph import Site, Value, whole
from weightsmith.methods.directions.iso import frobenius
from weightsmith.methods.directions.tsv import strength_parameter
from weightsmith.methods.parts.gram import rounding_floor
from weightsmith.methods.parts.matrices import in_float64
from weightsmith.methods.parts.registry import Base, method, shared
from weightsmith.methods.parts.span import plain_sum
from weightsmith.methods.parts.spectra import ByMatrix, Decomposition, SpectralRules
from weightsmith.methods.parts.task_vectors import lambda_parameter, task_vectors
from weightsmith.tensors import DType


@method(
    "svc",
    title="SVC (singular value calibration)",
    paper="When Shared Knowledge Hurts: Spectral Over-Accumulation in Model Merging, 2026, arXiv:2602.05536",
    base=Base.REQUIRED,
    presets={"fusionbench": {"lambda": 0.3, "alpha": 0.1}},
    cost="O(m n min(m, n) + N m n min(m, n))",
    step={"merged": "first"},
)
@dataclass(frozen=True, slots=True)
class SingularValueCalibration(SpectralRules):
    """A merged task vector whose singular values are divided by how often the tasks were counted in them.

        tau = lambda sum_i w_i tau_i = U S V^T,   a_ri = u_r^T tau_i                   response of task i in direction r
        s_ri = <S_r v_r, a_ri> / ||a_ri||^2                                            1: as strong as in task i alone
        theta = theta_0 + U diag(gamma_r S_r) V^T,   gamma_r = N_r / sum_i max(alpha, s_ri)

    The sums run over the N_r tasks that respond in direction r: those whose a_ri is more than rounding (rank_tolerance,
    and the dtype that the weights are stored in). Others have nothing that could be counted twice; the formula would
    divide by 0 there, and a peer counts them with alpha. alpha = 1 never amplifies; below 1 a direction that tasks
    contradict each other in grows, up to 1 / alpha fold (0: without bound). The paper has alpha from .1 to 1; preset
    `fusionbench` is that tool's configuration for task arithmetic. N copies of a task give that task for
    lambda N >= alpha, tasks whose row spaces and column spaces are orthogonal give their sum for alpha <= 1 and
    lambda 1, and an alpha above every s_ri gives tau / alpha.

    With `merged: first` the first expert is the merge to calibrate (its change times lambda) and the others are what
    it was merged from. As a step of `then:` it is so: the merge of the recipe is calibrated by the recipe's experts,
    as they were before any modifier. Directions of the merge below rank_tolerance, and tensors that are no matrix,
    stay as merged (`others: base`: at the base). Where singular values are equal their directions are arbitrary, and
    the result with them. One decomposition and N products, O((N + 1) m n min(m, n)) time; N + 5 matrices in float64.
    """

    others: str = shared(
        "merged",
        choices=("merged", "base"),
        doc="what becomes of tensors that are no matrix: as merged, or the base's",
    )
    embeddings: str = shared(
        "spectral",
        choices=("spectral", "merged", "base"),
        doc="how embeddings and heads are taken: as matrices, or by one of the rules of `others`",
    )
    weight: tuple[float, ...] = strength_parameter()
    scale: float = lambda_parameter()
    alpha: float = shared(
        1.0, low=0.0, doc="least count of a task in a direction; smaller values keep more strength"
    )
    merged: str = shared(
        "sum",
        choices=("sum", "first"),
        doc="what is calibrated: the weighted sum of the task vectors, or the first expert, merged from the others",
    )

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Calibrate the merged task vector by the tasks' and add it to the base."""
        base, deltas = task_vectors(base, experts)
        merged, tasks = self._merged(deltas, site)
        view = self.view(site)
        if view is None:
            return base if self.rule(site) == "base" else base + merged
        function = Calibrated(self.alpha, self.how(site), site.stored)
        return base + whole(ByMatrix(function, view, site.name), base, merged, *tasks)

    def _merged(self, deltas: list[Value], site: Site) -> tuple[Value, list[Value]]:
        if self.merged == "sum":
            merged, tasks = plain_sum(deltas, self.weight), deltas
        elif len(deltas) > 1:
            merged, tasks = deltas[0], deltas[1:]
        else:
            raise RecipeError(
                f"svc with merged: first has one model at tensor {site.name!r}; give the merge first and "
                "then the models that it was merged from."
            )
        return (merged if self.scale == 1.0 else merged * self.scale), tasks


@dataclass(frozen=True, slots=True)
class Calibrated:
    """Base, merged task vector and task vectors of one matrix -> the merged one with calibrated singular values."""

    alpha: float
    how: Decomposition
    stored: DType

    def __call__(self, linalg: Any, matrices: list[Any]) -> Any:
        """Matrix of the same shape, in float64."""
        base, given, *tasks = matrices
        merged = in_float64(linalg, given)
        found = self.how.spectrum(linalg, given).separated()
        if not found.rank:
            return merged
        count = counted = found.values * 0.0
        mixed = self.how.mixtures(linalg, found.values, merged.shape)
        for task in tasks:
            responses = found.left.T @ in_float64(linalg, task)  # [rank, inputs]
            squares = (responses * responses).sum(1)  # [rank]
            responds = squares > self._silence(linalg, base, task, mixed) ** 2
            along = (responses * found.right).sum(1) * found.values
            share = along / linalg.where(responds, squares, 1.0)
            share = linalg.where(share > self.alpha, share, self.alpha)
            counted = counted + linalg.where(responds, share, 0.0)
            count = count + linalg.where(responds, 1.0, 0.0)
        is_counted = counted > 0.0
        factors = linalg.where(is_counted, count / linalg.where(is_counted, counted, 1.0), 1.0)
        # Added to the merge, so that what is not scaled keeps every bit.
        return merged + (found.left * ((factors - 1.0) * found.values)) @ found.right

    def _silence(self, linalg: Any, base: Any, task: Any, mixed: Any) -> Any:
        """The length up to which the task's response in each direction can be rounding."""
        length = frobenius(linalg, in_float64(linalg, task))
        floor = rounding_floor(linalg, base, [task], self.how.tolerance, self.stored)
        return length * (max(self.how.cutoff(linalg, task), math.sqrt(floor)) + mixed)
