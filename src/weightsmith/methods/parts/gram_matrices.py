"""What every Gram matrix X^T X is, whatever X: checked where a method sees a stored one whole."""

from __future__ import annotations

from typing import Any

from weightsmith.errors import CompatibilityError
from weightsmith.tensors import DType

# Rows that are compared with columns at a time.
_ROWS = 64


def require_gram(linalg: Any, gram: Any, stored: DType, what: str) -> None:
    """Raise CompatibilityError unless a matrix, or each of a stack, is symmetric with a diagonal that is not negative.

    Elements (i, j) and (j, i) may differ by sqrt(epsilon) sqrt(G_ii G_jj), with the precision epsilon of the `stored`
    dtype, or of float32 for wider ones: what sums over many samples lose in it. `what` names the matrix in messages.
    """
    for matrix in [gram] if len(gram.shape) == 2 else [gram[i] for i in range(gram.shape[0])]:
        if 0 not in matrix.shape:
            _require(linalg, matrix, _epsilon(stored), what)


def _epsilon(stored: DType) -> float:
    return float(2.0 ** (1 - min(stored.significant_bits, DType.FLOAT32.significant_bits)))


def _require(linalg: Any, matrix: Any, epsilon: float, what: str) -> None:
    diagonal = linalg.diagonal(matrix)
    if bool((diagonal < 0).any()):
        at = int(diagonal.argmin())
        raise CompatibilityError(
            f"{what} holds a negative number on its diagonal, at [{at}, {at}], which no sum of squares can be; collect "
            "it again."
        )
    lengths = linalg.sqrt(diagonal)
    # Of inputs that are all but dead, products may have underflowed.
    lengths = lengths.clip(epsilon * lengths.max())
    for start in range(0, int(matrix.shape[0]), _ROWS):
        # What lies left of these rows was compared with them before.
        rows, columns = (
            matrix[start : start + _ROWS, start:],
            matrix[start:, start : start + _ROWS].T,
        )
        # Mostly they are the same numbers, which is seen fastest.
        if bool((rows == columns).all()):
            continue
        allowed = lengths[start : start + _ROWS, None] * (lengths[start:] * epsilon**0.5)
        excess = abs(rows - columns) - allowed
        if bool((excess > 0).any()):
            row, column = divmod(int(excess.reshape(-1).argmax()), int(excess.shape[1]))
            row, column = row + start, column + start
            raise CompatibilityError(
                f"{what} is not symmetric: elements [{row}, {column}] and [{column}, {row}] differ by more than "
                "rounding; collect it again."
            )
