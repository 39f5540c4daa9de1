"""Reductions that give one number per column of a view of the tensor."""

from __future__ import annotations

from weightsmith.graph.columns import Columns
from weightsmith.graph.graph import Scalar, Scope, Value


def column_total(x: Value, columns: Columns) -> Scalar:
    """Sum over each column of a view, in float64: a vector, known after a pass.

    `apply` and `solve` see such numbers as one float64 array of all columns, matrix after matrix.
    """
    return Scalar("total", (x,), (columns,), Scope.COLUMN, columns)


def column_dot(x: Value, y: Value, columns: Columns) -> Scalar:
    """As `column_total`, of products."""
    return Scalar("dot", (x, y), (columns,), Scope.COLUMN, columns)


def column_peak(x: Value, columns: Columns) -> Scalar:
    """As `column_total`, but the largest element of each column."""
    return Scalar("peak", (x,), (columns,), Scope.COLUMN, columns)
