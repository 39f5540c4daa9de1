"""How much the leading directions of several models' changes overlap, matrix by matrix.

With U_i the r leading left singular vectors of u_i = expert_i - base (outputs x inputs; a convolution's kernel as
outputs x everything else),

    overlap    |U_i^T U_j|_F^2 / r        1: the same subspace, r / outputs: what unrelated ones have

The vectors come from a randomised range finder with two power iterations (Halko et al. 2011), which reads each matrix
in blocks of rows; memory is O((outputs + inputs) (r + 8)), whatever the matrix holds.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weightsmith.checkpoints import Checkpoint, respelled
from weightsmith.deltas import MatrixDifference
from weightsmith.errors import NonFiniteError
from weightsmith.graph import sketched_spectrum
from weightsmith.inspection.interference import Place
from weightsmith.tensors import LazyTensor, in_parallel, kernel_shape

RANK = 8
_OVERSAMPLING = 8
_POWER_ITERATIONS = 2
_TOLERANCE = 1e-5

Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MatrixOverlap:
    """The mean overlap over pairs of experts of one matrix, at `rank` directions; `chance` is rank / outputs."""

    name: str
    place: Place
    overlap: float
    rank: int
    chance: float


def measure_overlaps(
    base: Checkpoint, experts: Sequence[Checkpoint], *, rank: int = RANK, threads: int | None = None
) -> tuple[MatrixOverlap, ...]:
    """The overlap of every matrix within the base's blocks that all have in one shape, in the base's order.

    Matrices that some expert did not change are left out; where changes have fewer than `rank` directions (default
    8), as many are compared. Reads each matrix 6 times.
    """
    experts = [respelled(expert, base) for expert in experts]
    names = [name for name in base.tensors if _is_measured(base, experts, name)]
    found = in_parallel(lambda name: _overlap(base, experts, name, rank), names, threads)
    return tuple(overlap for overlap in found if overlap is not None)


def _is_measured(base: Checkpoint, experts: Sequence[Checkpoint], name: str) -> bool:
    tensor, role = base.tensors[name], base.places[name]
    others = [expert.tensors.get(name) for expert in experts]
    return (
        role.layer is not None
        and tensor.dtype.is_float
        and len(tensor.shape) in (2, 4)
        and min(tensor.shape) > 0
        and all(o is not None and o.dtype.is_float and o.shape == tensor.shape for o in others)
    )


def _overlap(
    base: Checkpoint, experts: Sequence[Checkpoint], name: str, rank: int
) -> MatrixOverlap | None:
    role = base.places[name]
    directions = [
        leading_directions(
            base.tensors[name], expert.tensors[name], rank, turned=role.input_first, seed=name
        )
        for expert in experts
    ]
    compared = min(vectors.shape[1] for vectors in directions)
    if compared == 0:
        return None
    pairs = itertools.combinations(directions, 2)
    overlaps = [subspace_overlap(a[:, :compared], b[:, :compared]) for a, b in pairs]
    return MatrixOverlap(
        name,
        (role.stack, role.layer, role.kind.value),
        sum(overlaps) / len(overlaps),
        compared,
        compared / len(directions[0]),
    )


def subspace_overlap(a: Matrix, b: Matrix) -> float:
    """|a^T b|_F^2 / r of two matrices [n, r] with orthonormal columns: from 0 (orthogonal) to 1 (the same span)."""
    shared = float(np.square(a.T @ b).sum())
    return min(1.0, shared / int(a.shape[1]))


def leading_directions(
    base: LazyTensor, expert: LazyTensor, rank: int, *, turned: bool = False, seed: str = ""
) -> Matrix:
    """The leading left singular vectors of expert - base, [outputs, at most rank], columns by falling singular value.

    `turned`: the matrices are stored as inputs x outputs. Directions whose singular value is less than 1e-5 of the
    largest do not count; a change that is 0 or not finite has none. The sketch is seeded by `seed`.
    """
    shape = kernel_shape(base.shape)
    outputs, inputs = reversed(shape) if turned else shape
    key = int.from_bytes(hashlib.sha256(seed.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    random = np.random.Generator(np.random.Philox(key))
    sketch = random.standard_normal((inputs, min(rank + _OVERSAMPLING, *shape)))
    change = MatrixDifference(expert, base, shape)
    try:
        with np.errstate(invalid="ignore"):
            found = sketched_spectrum(
                change.rows, shape, sketch, _POWER_ITERATIONS, transposed=turned
            )
    except NonFiniteError:
        return np.zeros((outputs, 0))
    kept = min(rank, int((found.values > _TOLERANCE * found.values[0]).sum()))
    left: Matrix = found.left[:, :kept]
    return left
