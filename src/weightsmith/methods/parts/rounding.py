"""What the rounding of stored weights makes of a task vector's singular values.

Stored weights are off by up to half a unit in the last place u. Errors that spread evenly over it have the mean square
e_ij^2 = u_ij^2 / 12, and a matrix of them has singular values up to

    max_i sqrt(sum_j e_ij^2) + max_j sqrt(sum_i e_ij^2)

the root mean squares of the lengths of its longest row and column (Bandeira and van Handel, 2016). Where all units are
equal that is e (sqrt m + sqrt n), above which small matrices have some, so it is taken 5 % higher there. It is an
estimate: of bfloat16 matrices of 24 x 24 to 400 x 400 whose weights are equal in size, normal, of heavy tails, or
uneven by rows or columns, up to 5 in 1,000 have larger errors. Where both rows and columns are uneven it is up to twice
what errors have. Rows and columns that a task left alone have no errors. What a task vector holds below that is not
told from rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from weightsmith.tensors import DType

# By how much the largest singular value of a random matrix of equal entries may be above its limit for large ones.
_MARGIN = 1.05
# By how much the length of a row may be above the root of its squared length's mean, in units of the error: several
# deviations, as weights of uneven size need.
_DEVIATIONS = 5.0
# The smallest float16 number with all its digits, below which the unit is that of this number.
_SMALLEST_HALF = 2.0**-14
FLOAT64 = 2.0**-52
# Units of max(m, n) times float64's precision by which its arithmetic may be off.
LAPACK = 8.0


@dataclass(frozen=True, slots=True)
class Rounding:
    """Errors of one matrix over the rows and columns that have any: their root mean square, and that of the length of
    the longest row and column.

    `arithmetic` is a bound of what float64 adds where singular values are computed; it counts beside errors of float64
    weights only.
    """

    error: float = 0.0
    rows: int = 0
    columns: int = 0
    longest_row: float = 0.0
    longest_column: float = 0.0
    arithmetic: float = 0.0

    @property
    def strength(self) -> float:
        """Their largest singular value."""
        plain = self.error * (sqrt(self.rows) + sqrt(self.columns))
        return max(_MARGIN * plain, self.longest_row + self.longest_column) + self.arithmetic

    @property
    def row_length(self) -> float:
        """The greatest length of a row, or of a combination of rows whose coefficients have length 1."""
        return self.longest_row + _DEVIATIONS * self.error + self.arithmetic

    @property
    def square(self) -> float:
        """Their squared length, the sum of squares over all elements."""
        return self.error**2 * self.rows * self.columns + self.arithmetic**2


EXACT = Rounding()


def rounding_of(linalg: Any, base: Any, delta: Any, stored: DType) -> Rounding:
    """Errors of a task vector whose weights were stored in a dtype, or in that of the arrays if that is coarser."""
    changed = delta != 0
    touched = changed.any(1), changed.any(0)
    rows, columns = (int(t.sum()) for t in touched)
    if not rows:
        return EXACT
    weights = base + delta
    if rows < base.shape[0] or columns < base.shape[1]:
        weights = weights[touched[0]][:, touched[1]]
    powers = _powers_of_two(linalg, weights)
    if stored is DType.FLOAT16:
        powers = linalg.where(powers < _SMALLEST_HALF, _SMALLEST_HALF, powers)
    largest = _number(powers.max())
    if largest == 0.0:
        return EXACT
    squares = (powers / largest) ** 2
    by_row, by_column = (squares.sum(axis, dtype=linalg.float64) for axis in (1, 0))
    unit = largest * _precision(linalg, base, stored) / sqrt(12.0)
    return Rounding(
        unit * sqrt(_number(by_row.sum()) / (rows * columns)),
        rows,
        columns,
        unit * sqrt(_number(by_row.max())),
        unit * sqrt(_number(by_column.max())),
        arithmetic_of(base.shape, _length(delta)),
    )


def arithmetic_of(shape: Sequence[int], length: float) -> float:
    """By how much float64 may move a singular value of a matrix that has a length.

    LAPACK finds the singular values of a matrix that is off by the precision times the largest of them, times a factor
    that grows slowly with the size (Users' Guide, section 4.9). With 8 max(m, n) for it this is some ten times what
    matrices of 4 to 12 rows show, and more for larger ones.
    """
    return LAPACK * max(shape) * FLOAT64 * length


def _length(matrix: Any) -> float:
    largest = _number(abs(matrix).max())
    return largest * sqrt(_number(((matrix / largest) ** 2).sum())) if largest else 0.0


def _precision(linalg: Any, base: Any, stored: DType) -> float:
    """The unit in the last place of 1."""
    own = float(linalg.finfo(base.dtype).eps)
    return max(own, 2.0 ** (1 - stored.significant_bits)) if stored.significant_bits else own


def _powers_of_two(linalg: Any, weights: Any) -> Any:
    """The largest power of two that each magnitude reaches, 0 of the smallest numbers."""
    weights = weights.detach() if hasattr(weights, "detach") else weights
    is_wide = weights.dtype == linalg.float64
    exponent = 0x7FF0 << 48 if is_wide else 0x7F80 << 16
    bits = weights.view(linalg.int64 if is_wide else linalg.int32) & exponent
    return bits.view(weights.dtype)


def noise_of_sum(
    roundings: Sequence[Rounding], weights: Sequence[float], alike: Sequence[Sequence[float]]
) -> float:
    """The largest singular value of the errors of sum_i w_i tau_i, which are as alike as `shares_alike` says."""
    sizes = [r.strength * w for r, w in zip(roundings, weights, strict=True)]
    square = 0.0
    for i, size in enumerate(sizes):
        square += sum(size * other * alike[i][j] for j, other in enumerate(sizes))
    return sqrt(max(square, 0.0))


def noise_side_by_side(roundings: Sequence[Rounding], alike: Sequence[Sequence[float]]) -> float:
    """The largest singular value of the matrices of errors [E_1 .. E_N], which are as alike as `shares_alike` says."""
    plain = sqrt(sum(r.error**2 * r.columns for r in roundings))
    plain += max(r.error * sqrt(r.rows) for r in roundings)
    longest_row = sqrt(sum(r.longest_row**2 for r in roundings))
    independent = max(_MARGIN * plain, longest_row + max(r.longest_column for r in roundings))
    sizes = [r.strength for r in roundings]
    square = max(
        size * sum(alike[i][j] * other for j, other in enumerate(sizes))
        for i, size in enumerate(sizes)
    )
    return max(independent, sqrt(square))


def shares_alike(deltas: Sequence[Any], roundings: Sequence[Rounding]) -> list[list[float]]:
    """How alike the errors of two tasks are: of the weights that either changed, the share that are equal in both.

    Errors are independent of each other elsewhere. Copies of one expert have the same errors.
    """
    count = len(deltas)
    shares = [[float(i == j) for j in range(count)] for i in range(count)]
    for i in range(count):
        for j in range(i + 1, count):
            if roundings[i].error == 0.0 or roundings[j].error == 0.0:
                continue
            changed = (deltas[i] != 0) | (deltas[j] != 0)
            alike = changed & (deltas[i] == deltas[j])
            shares[i][j] = shares[j][i] = _number(alike.sum()) / _number(changed.sum())
    return shares


def _number(entry: Any) -> float:
    return float(entry.detach() if hasattr(entry, "detach") else entry)
