"""Low-rank task vectors: keep the leading singular directions of what fine-tuning changed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.errors import NonFiniteError
from weightsmith.methods.linear import normalized
from weightsmith.methods.matrices import in_dtype_of, in_float64
from weightsmith.methods.registry import Base, method, per_expert, shared
from weightsmith.methods.task_vectors import task_vectors
from weightsmith.tensors.graph import Site, Value, linear_combination, whole


@method(
    "truncate",
    title="Rank-truncated task vectors",
    paper="Eckart and Young, 1936; for task vectors Gargiulo et al., CVPR 2025, arXiv:2412.00081",
    base=Base.REQUIRED,
)
@dataclass(frozen=True, slots=True)
class Truncate:
    """Average of task vectors, each reduced to its best approximation of low rank.

        tau_i = U S V^T;   tau^_i = the r largest singular triplets;   theta = theta_0 + lambda sum_i w_i tau^_i
        r = rank, or max(1, floor(rank_share min(m, n)))

    Singular vectors of a zero (or rounding) singular value are arbitrary, and carry no weight in tau^_i. Weights are
    divided by their sum with `normalize` (the default). O(m n min(m, n)) time; one whole matrix or stack at a time,
    in float64. Tensors that are no matrix: 0-d and 1-d task vectors are averaged untruncated (others: average) or
    dropped (others: base); 3-d ones are stacks of matrices, truncated one by one (stacks: slices), or treated like
    the others; so are tensors of more axes, or as matrices of shape (first axis, all others) with kernels: matrix.
    A rank that reaches min(m, n) leaves the task vector as it is. Raises NonFiniteError for a matrix with NaN or
    infinities.
    """

    weight: tuple[float, ...] = per_expert(1.0, doc="coefficient of each task vector")
    rank: int | None = shared(
        None, low=1, optional=True, doc="singular directions kept; none: by rank_share"
    )
    rank_share: float = shared(
        0.1, low=0.0, high=1.0, doc="share of the singular directions kept, without rank"
    )
    normalize: bool = shared(True, doc="divide the weights by their sum")
    scale: float = shared(1.0, key="lambda", doc="coefficient of the merged task vector")
    others: str = shared(
        "average", choices=("average", "base"), doc="what becomes of tensors that are no matrix"
    )
    stacks: str = shared("slices", choices=("slices", "others"), doc="how 3-d tensors are taken")
    kernels: str = shared(
        "others", choices=("others", "matrix"), doc="how tensors of four or more axes are taken"
    )

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Truncate each task vector and add their average to the base."""
        base, deltas = task_vectors(base, experts)
        matrix = self._matrix_shape(site.shape)
        if matrix is None and self.others == "base":
            return base
        if matrix is not None and self._rank(matrix) < min(matrix):
            truncation = Truncation(self._rank(matrix), matrix, site.name)
            deltas = [whole(truncation, d) for d in deltas]
        weights = normalized(self.weight) if self.normalize else self.weight
        return base + linear_combination(deltas, [w * self.scale for w in weights])

    def _matrix_shape(self, shape: tuple[int, ...]) -> tuple[int, int] | None:
        if len(shape) == 2 or (len(shape) == 3 and self.stacks == "slices"):
            return shape[-2], shape[-1]
        if len(shape) > 3 and self.kernels == "matrix":
            return shape[0], math.prod(shape[1:])
        return None

    def _rank(self, matrix: tuple[int, int]) -> int:
        if self.rank is not None:
            return self.rank
        return max(1, math.floor(self.rank_share * min(matrix)))


@dataclass(frozen=True, slots=True)
class Truncation:
    """Best approximation of rank `rank` of every matrix of a stack."""

    rank: int
    matrix: tuple[int, int]
    tensor: str

    def __call__(self, linalg: Any, array: Any) -> Any:
        """Array of the same shape and dtype, computed in float64."""
        if 0 in array.shape:
            return array
        if not bool(linalg.isfinite(array).all()):
            raise NonFiniteError(
                f"The task vector of {self.tensor!r} holds NaN or infinity and has no singular values; "
                "merge this tensor with another method, or repair its checkpoint."
            )
        stack = in_float64(linalg, array).reshape((-1, *self.matrix))
        left, values, right = linalg.linalg.svd(stack, full_matrices=False)
        noise = values[:, :1] * (max(self.matrix) * linalg.finfo(array.dtype).eps)
        kept = (values * (values > noise))[:, None, : self.rank]
        low_rank = (left[:, :, : self.rank] * kept) @ right[:, : self.rank, :]
        return in_dtype_of(array, low_rank).reshape(array.shape)
