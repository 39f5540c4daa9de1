"""WIDEN: weight experts column by column, by how far magnitudes and directions of weights moved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from weightsmith.methods.matrices import in_dtype_of, in_float64
from weightsmith.methods.registry import Base, method, shared
from weightsmith.methods.task_vectors import lambda_parameter, task_vectors
from weightsmith.tensors.graph import Site, Value, add_all, exp, maximum, total, where, whole

_LOOKUPS = ("embedding", "position_embedding", "type_embedding")
# Elements of a matrix that are taken to float64 at a time, as many as stay in a core's cache; and that are summed one
# after the other before such sums are added up.
_BLOCK = 1 << 15
_SUMMED = 1 << 20


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
    their columns along the first axis. Sums are float64; O(N P) time, and whole matrices in memory.
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
        if len(site.shape) < 2:
            weights = self._elementwise(deltas, site)
            merged = add_all([d * w for d, w in zip(deltas, weights, strict=True)])
            return base + (merged if self.scale == 1.0 else merged * self.scale)
        by_row = self._by_row(site)
        rule = ColumnMerge(self.above_average, self.calibration, self.scale, by_row)
        return whole(rule, base, *experts)

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
class ColumnMerge:
    """W_0 + lambda sum_i w_i * (W_i - W_0) of matrices (or stacks, or kernels), with one w_i for each column."""

    above_average: float
    calibration: float
    scale: float
    by_row: bool

    def __call__(self, linalg: Any, base: Any, *experts: Any) -> Any:
        """Array of the same shape and dtype."""
        if 0 in base.shape:
            return base
        rows = base.shape[-2] if base.ndim == 3 else base.shape[0]
        stacked = (-1, rows, base.shape[-1] if base.ndim == 3 else math.prod(base.shape[1:]))
        matrices = [a.reshape(stacked) for a in (base, *experts)]
        merged = linalg.zeros_like(matrices[0])
        with np.errstate(all="ignore"):
            for i in range(merged.shape[0]):
                self._merge(linalg, [m[i] for m in matrices], merged[i])
        return merged.reshape(base.shape)

    def _merge(self, linalg: Any, matrices: Sequence[Any], merged: Any) -> None:
        """Write one merged matrix, block of rows by block of rows."""
        weights = self._weights(linalg, matrices)
        for rows in _blocks(matrices[0], _BLOCK):
            wide = in_float64(linalg, matrices[0][rows])
            change = linalg.zeros_like(wide)
            for weight, matrix in zip(weights, matrices[1:], strict=True):
                factor = weight[rows, None] if self.by_row else weight[None, :]
                change += factor * (matrix[rows] - wide)
            merged[rows] = in_dtype_of(merged, wide + change * self.scale)

    def _weights(self, linalg: Any, matrices: Sequence[Any]) -> list[Any]:
        base, experts = self._column_squares(linalg, matrices)
        length = linalg.sqrt(base)
        magnitudes, directions = [], []
        for square, change in experts:
            own = linalg.sqrt(square)
            magnitude = abs(own - length)
            divisor = 2.0 * own * length
            known = divisor > 0
            # 1 - cos, written so that it is 0 for a column that did not change, and keeps its digits where it is small.
            turned = (change - magnitude * magnitude) / linalg.where(known, divisor, divisor + 1.0)
            magnitudes.append(magnitude)
            directions.append(linalg.where(known & (turned > 0), turned, linalg.zeros_like(own)))
        scores = [self._scores(linalg, changes) for changes in (magnitudes, directions)]
        return [(a + b) / 2.0 for a, b in zip(*scores, strict=True)]

    def _column_squares(
        self, linalg: Any, matrices: Sequence[Any]
    ) -> tuple[Any, list[tuple[Any, Any]]]:
        """The squared norms of the base's columns, and each expert's with those of its differences from the base."""
        count = 2 * len(matrices) - 1
        parts: list[list[Any]] = [[] for _ in range(count)]
        for outer in _blocks(matrices[0], _SUMMED):
            sums: list[Any] = [None] * count
            for rows in _blocks(matrices[0][outer], _BLOCK):
                found = self._squares(linalg, [m[outer][rows] for m in matrices])
                sums = [self._added(linalg, *pair) for pair in zip(sums, found, strict=True)]
            for part, summed in zip(parts, sums, strict=True):
                part.append(summed)
        base, *experts = [self._joined(linalg, part) for part in parts]
        return base, list(zip(experts[::2], experts[1::2], strict=True))

    def _squares(self, linalg: Any, blocks: Sequence[Any]) -> list[Any]:
        """Squares of the base, and of each expert and its differences; sums of rows where they are wanted."""
        origin = in_float64(linalg, blocks[0])
        wide = [in_float64(linalg, block) for block in blocks[1:]]
        squares = [origin * origin]
        for own in wide:
            change = own - origin
            squares += [own * own, change * change]
        return [square.sum(1) for square in squares] if self.by_row else squares

    def _added(self, linalg: Any, known: Any, found: Any) -> Any:
        """Sums so far and those of the next block: further rows, or all rows of a column one after the other."""
        if self.by_row:
            return found if known is None else linalg.concatenate([known, found])
        return (found if known is None else linalg.concatenate([known[None, :], found])).sum(0)

    def _joined(self, linalg: Any, parts: list[Any]) -> Any:
        if self.by_row:
            return linalg.concatenate(parts)
        joined = parts[0]
        for part in parts[1:]:
            joined = joined + part
        return joined

    def _scores(self, linalg: Any, changes: Sequence[Any]) -> list[Any]:
        positions = [_positions(linalg, change) for change in changes]
        columns = float(len(changes[0]))
        powers = [linalg.exp(position / columns) for position in positions]
        # The mean of the positions 0..n-1, so that the middle column is never above it by rounding.
        mean = (columns - 1.0) / 2.0
        whole_sum = sum(powers[1:], powers[0])
        calibrated = linalg.ones_like(powers[0]) * self.calibration
        return [
            linalg.where(position > mean * self.above_average, calibrated, power / whole_sum)
            for position, power in zip(positions, powers, strict=True)
        ]


def _positions(linalg: Any, numbers: Any) -> Any:
    """Positions 0, 1, ... in ascending order; equal numbers in the order of their index."""
    # numpy before 2.0 and torch have different words for a stable sort.
    order = (
        np.argsort(numbers, kind="stable") if linalg is np else linalg.argsort(numbers, stable=True)
    )
    positions = linalg.zeros_like(numbers)
    positions[order] = linalg.ones_like(numbers).cumsum(0) - 1.0
    return positions


def _blocks(matrix: Any, elements: int) -> list[slice]:
    rows, columns = matrix.shape
    step = max(1, elements // max(1, columns))
    return [slice(start, start + step) for start in range(0, rows, step)]
