"""WIDEN: weight experts column by column, by how far magnitudes and directions of weights moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from weightsmith.graph import (
    Columns,
    Site,
    Value,
    add_all,
    column_dot,
    exp,
    maximum,
    scalars,
    solve,
    total,
    value,
    where,
)
from weightsmith.methods.parts.registry import Base, method, shared
from weightsmith.methods.parts.task_vectors import lambda_parameter, task_vectors
from weightsmith.tensors import matrix_stack

_LOOKUPS = ("embedding", "position_embedding", "type_embedding")


@method(
    "widen",
    title="WIDEN (weight disentanglement)",
    paper="Yu et al., 2024, arXiv:2408.03092",
    base=Base.REQUIRED,
)
@dataclass(frozen=True, slots=True)
class Widen:
    """Merge experts that changed weights by very different amounts, such as instructed and further pre-trained ones.

        W = W_0 + lambda sum_i w_i * (W_i - W_0)        w_i: one number per column, not normalised over experts
        m = norms of the columns,  D = W / m;   dm_i = |m_i - m_0|,   dD_i = 1 - cos(D_i, D_0)
        r_i = rank of dm_i (of dD_i) within expert i / columns             0 for the smallest, below 1
        S_i = softmax over experts of r_i;   S_i = s where r_i > t mean(r_i)
        w_i = (S_i of magnitudes + S_i of directions) / 2

    A column holds the weights of one input; of an embedding it is the row of one token. Equal values rank in the
    order of the columns. A column that is zero in expert or base has no direction, so dD = 0 there. t is
    `above_average` and s is `calibration`; with their defaults of 1 about half of the columns of each expert keep
    weight 1. Of one expert all do, and it is the result. Tensors without columns (0-d, 1-d) take r_i = |tau_i|
    itself, element by element, with means over the tensor, and the same S_i. Stacks of experts (E, outputs, inputs)
    are merged matrix by matrix, kernels as matrices (outputs, the rest). Matrices stored input first (Conv1D) have
    their columns along the first axis. Two passes: sums of squares per column in float64, then the merge element by
    element. 1 - cos is (|W_i - W_0|^2 - dm_i^2) / (2 m_i m_0), from the squares of differences that were rounded to
    work precision once: exact for half-precision weights of similar size, else right to 1e-7 of |W_i - W_0|^2, which
    is small where the change is.
    """

    above_average: float = shared(
        1.0, low=0.0, doc="t: ratio to the mean significance above which a column is important"
    )
    calibration: float = shared(1.0, low=0.0, doc="s: score of important columns")
    scale: float = lambda_parameter()
    orientation: str = shared(
        "auto",
        choices=("auto", "output_first", "input_first"),
        doc="axes of stored matrices; auto: as inferred from the checkpoint (input first for GPT-2's Conv1D)",
    )

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Add the weighted task vectors to the base."""
        base, deltas = task_vectors(base, experts)
        if len(experts) == 1 and self.calibration == 1.0 and self.scale == 1.0:
            return experts[0]
        if site.numel == 0:
            return base
        if len(site.shape) < 2:
            weights = self._elementwise(deltas, site)
        else:
            weights = self._by_column(base, experts, deltas, site)
        merged = add_all([d * w for d, w in zip(deltas, weights, strict=True)])
        return base + (merged if self.scale == 1.0 else merged * self.scale)

    def _by_column(
        self, base: Value, experts: Sequence[Value], deltas: Sequence[Value], site: Site
    ) -> list[Value]:
        """A weight for each column of each matrix, which are (outputs, inputs) or, by row, (inputs, outputs)."""
        _, rows, width = matrix_stack(site.shape)
        by_row = self._by_row(site)
        view = Columns(width, 1) if by_row else Columns(rows, width)
        sums = [column_dot(base, base, view)]
        for own, change in zip(experts, deltas, strict=True):
            sums += [column_dot(own, own, view), column_dot(change, change, view)]
        rule = ColumnWeights(self.above_average, self.calibration, rows if by_row else width)
        return [value(weight) for weight in solve(rule, sums, len(experts))]

    def _elementwise(self, deltas: Sequence[Value], site: Site) -> list[Value]:
        changes = [abs(d) for d in deltas]
        largest = changes[0]
        for other in changes[1:]:
            largest = maximum(largest, other)
        powers = [exp(c - largest) for c in changes]
        whole_sum = add_all(powers)
        size = max(1, site.numel)
        return [
            where(c > total(c) * (self.above_average / size), self.calibration, p / whole_sum)
            for c, p in zip(changes, powers, strict=True)
        ]

    def _by_row(self, site: Site) -> bool:
        """Whether a column of the paper is a row of the stored matrix: tokens of an embedding, inputs of a Conv1D."""
        if site.role in _LOOKUPS:
            return True
        turned = (
            site.input_first if self.orientation == "auto" else self.orientation == "input_first"
        )
        return turned and len(site.shape) in (2, 3)


@dataclass(frozen=True, slots=True)
class ColumnWeights:
    """w_i of every column, from sums over columns; `columns` of them are ranked together."""

    above_average: float
    calibration: float
    columns: int

    def __call__(self, base: Any, *experts: Any) -> list[Any]:
        """One vector for each expert, from the base's squares and each expert's, own and of its difference."""
        length = scalars.sqrt(base)
        magnitudes, directions = [], []
        for square, change in zip(experts[::2], experts[1::2], strict=True):
            own = scalars.sqrt(square)
            magnitude = abs(own - length)
            # 1 - cos, written so that it is 0 for a column that did not change, and keeps its digits where it is small.
            turned = scalars.divide(change - magnitude * magnitude, 2.0 * own * length)
            magnitudes.append(magnitude)
            directions.append(scalars.where(turned > 0, turned, 0.0))
        scores = [self._scores(changes) for changes in (magnitudes, directions)]
        return [(a + b) / 2.0 for a, b in zip(*scores, strict=True)]

    def _scores(self, changes: Sequence[Any]) -> list[Any]:
        positions = [_positions(change.reshape(-1, self.columns)).reshape(-1) for change in changes]
        powers = [scalars.exp(position / float(self.columns)) for position in positions]
        # The mean of the positions 0..n-1, so that the middle column is never above it by rounding.
        mean = (self.columns - 1.0) / 2.0
        whole_sum = sum(powers[1:], powers[0])
        return [
            scalars.where(position > mean * self.above_average, self.calibration, power / whole_sum)
            for position, power in zip(positions, powers, strict=True)
        ]


def _positions(numbers: Any) -> Any:
    """Positions 0, 1, ... in ascending order within each row; equal numbers in the order of their index."""
    if isinstance(numbers, np.ndarray):
        order = np.argsort(numbers, axis=-1, kind="stable")
        positions = np.empty_like(numbers)
        np.put_along_axis(positions, order, np.arange(numbers.shape[-1], dtype=np.float64), axis=-1)
        return positions
    order = numbers.detach().argsort(dim=-1, stable=True)
    counted = order.new_ones(order.shape).cumsum(-1) - 1
    return numbers.new_empty(numbers.shape).scatter_(-1, order, counted.to(numbers.dtype))
