"""Any change as a product of low rank: exactly where its form has one, else by singular values."""

from __future__ import annotations

import numpy as np

from weightsmith.deltas import Change, Hadamard, Kronecker, LowRankChange, Matrix, Weighted
from weightsmith.graph import Spectrum
from weightsmith.lora.algebra import (
    concatenated,
    dense_spectrum,
    kept_rank,
    leading,
    truncated,
    zeros,
)


def factored(
    change: Change, *, rank: int | None = None, energy: float | None = None
) -> LowRankChange:
    """A change as left @ right; without bounds exact to rounding.

    A LowRank stays as it is. LoHa is the row-by-row product of its factors (rank r1 r2), LoKr the product of the
    decompositions of its halves, whose singular values are all products of theirs; neither is made dense. Anything
    else is decomposed whole. `rank` and `energy` cut what is no LowRank, see `algebra.kept_rank`.
    """
    if isinstance(change, LowRankChange):
        return change
    if isinstance(change, Kronecker):
        return _kronecker(change, rank, energy)
    exact = _exact(change)
    if exact is not None and exact.rank < min(exact.shape):
        return exact if rank is None and energy is None else _cut(exact, rank, energy)
    found = dense_spectrum(change.rows(0, change.shape[0]))
    return leading(found, kept_rank(found.values, rank=rank, energy=energy))


def _cut(change: LowRankChange, rank: int | None, energy: float | None) -> LowRankChange:
    return truncated(change, rank=rank, energy=energy)[0]


def _exact(change: Change) -> LowRankChange | None:
    """The change as one product without any decomposition, where its form allows that."""
    if isinstance(change, LowRankChange):
        return change
    if isinstance(change, Hadamard):
        first, second = _exact(change.first), _exact(change.second)
        if first is None or second is None:
            return None
        scale = change.scale * first.scale * second.scale
        left = _row_products(first.left, second.left)
        return LowRankChange(left, _row_products(first.right.T, second.right.T).T, scale)
    if isinstance(change, Weighted):
        parts = [(weight, _exact(part)) for weight, part in change.parts]
        known = [(weight, part) for weight, part in parts if part is not None]
        return concatenated(known) if len(known) == len(parts) else None
    return None


def _row_products(first: Matrix, second: Matrix) -> Matrix:
    """Row i of the result is the Kronecker product of the rows i."""
    products: Matrix = first[:, :, None] * second[:, None, :]
    return products.reshape(len(first), -1)


def _kronecker(change: Kronecker, rank: int | None, energy: float | None) -> LowRankChange:
    outer, inner = dense_spectrum(change.left), dense_spectrum(change.right)
    if not len(outer.values) or not len(inner.values) or change.scale == 0.0:
        return zeros(*change.shape)
    products = np.outer(outer.values, inner.values).reshape(-1)
    order = np.argsort(-products, kind="stable")
    kept = order[: kept_rank(products[order], rank=rank, energy=energy)]
    i, j = np.divmod(kept, len(inner.values))
    # One column for each pair of directions: the Kronecker product of the two vectors.
    left = _row_products(outer.left[:, i].T, inner.left[:, j].T).T
    right = _row_products(outer.right[i], inner.right[j])
    values = products[kept] * abs(change.scale)
    sign = 1.0 if change.scale > 0.0 else -1.0
    return leading(Spectrum(left, values, right * sign), len(values))
