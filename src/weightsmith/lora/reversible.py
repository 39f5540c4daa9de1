"""Reversible Model Merging: a basis from which each of several adapters is rebuilt (arXiv:2510.14163).

With z_i the factors of adapter i at one tensor as rows (those of B and, below them, those of A^T; r numbers each) and
mu their mean over the N adapters, the p strongest directions U of the deviations are kept:

    c_i = U^T (z_i - mu)        z^_i = mu + U c_i        sum_i ||z_i - z^_i||^2 = sum of the discarded eigenvalues

    whole          one basis over all numbers of the tensor at once: about (p + 1) / N of the numbers are stored
    per_position   a basis of the r-vectors for every row and column, which is the paper's: (p (r + N) + r) / (r N)

With p = N - 1 every adapter is exact; p = 0 is their mean. Factors of one change can be written in many ways, and
means of differently written ones mean nothing: they are balanced (B = U sqrt(S), A = sqrt(S) V^T) and turned towards
each other (orthogonal Procrustes) first, so that no result depends on it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from weightsmith.deltas import LowRankChange, Matrix
from weightsmith.errors import CompatibilityError, UsageError
from weightsmith.graph import exact
from weightsmith.lora.algebra import concatenated, norm, truncated
from weightsmith.lora.alignment import aligned, labels_of
from weightsmith.lora.low_rank_adapters import Array, Factors, LowRankAdapter
from weightsmith.tensors import DType, one_blas_thread, promote, shown

BasisForm = Literal["whole", "per_position"]
# Rounds in which factors are turned towards their mean; it has settled long before.
_ROUNDS = 8
# Deviations below this share of the factors are rounding.
_ROUNDING = 1e-13


@dataclass(frozen=True, slots=True, eq=False)
class TensorBasis:
    """The basis of one tensor for the adapters `members` (their numbers), which change it.

    `first` has the tensor's facts; `rank` is r, `mean` (P x d), `directions` (P x p x d), `coefficients` (P x N x p),
    with P positions of d numbers each.
    """

    first: Factors
    members: tuple[int, ...]
    rank: int
    mean: Matrix
    directions: Matrix
    coefficients: Matrix

    @property
    def numbers(self) -> int:
        """How many are stored."""
        return self.mean.size + self.directions.size + self.coefficients.size

    def change(self, member: int) -> LowRankChange:
        """The change of the adapter with that number."""
        place = self.members.index(member)
        weights = self.coefficients[:, place, None, :]
        stacked = (self.mean + (weights @ self.directions)[:, 0]).reshape(-1, self.rank)
        rows = self.first.change.shape[0]
        return LowRankChange(stacked[:rows].copy(), np.ascontiguousarray(stacked[rows:].T))


@dataclass(frozen=True, slots=True)
class BasisTensor:
    """What the basis of one tensor costs and loses.

    `directions` is p. `ratio` is the numbers that are stored over those of all adapters' factors, `expected` what the
    discarded eigenvalues say: ||z - z^|| / ||z|| over all adapters; `errors` ||D_i - D^_i|| / ||D_i|| as measured, for
    each of the tensor's adapters.
    """

    key: str
    directions: int
    ratio: float
    expected: float
    errors: tuple[float, ...]


@dataclass(frozen=True, slots=True, eq=False)
class ReversibleBasis:
    """Several adapters as bases of their tensors. `replaced` and `added` are kept whole, for each adapter."""

    labels: tuple[str, ...]
    form: BasisForm
    tensors: Mapping[str, TensorBasis]
    replaced: tuple[Mapping[str, Array], ...] = ()
    added: tuple[Mapping[str, Array], ...] = ()
    base_reference: str | None = None
    dtype: DType = DType.FLOAT32
    report: tuple[BasisTensor, ...] = field(default=())

    def recovered(self, label: str) -> LowRankAdapter:
        """One adapter again, by its label or its number from 1; raises UsageError for another."""
        number = self._number(label)
        factors = {}
        for key, basis in self.tensors.items():
            if number in basis.members:
                first = basis.first
                factors[key] = Factors(
                    first.target,
                    basis.change(number),
                    first.shape,
                    first.kind,
                    first.input_first,
                    first.part,
                )
        return LowRankAdapter(
            factors, self.replaced[number], self.added[number], self.base_reference, self.dtype
        )

    def _number(self, label: str) -> int:
        if label in self.labels:
            return self.labels.index(label)
        if label.isdecimal() and 1 <= int(label) <= len(self.labels):
            return int(label) - 1
        listed = ", ".join(self.labels)
        raise UsageError(f"The basis has no adapter {shown(label)}: it has {listed}.")


@one_blas_thread()
def reversible_basis(
    adapters: Sequence[LowRankAdapter],
    labels: Sequence[str] = (),
    *,
    directions: int | None = None,
    error: float | None = None,
    form: BasisForm = "whole",
) -> ReversibleBasis:
    """A basis of adapters of one base, and for each tensor what it costs and loses.

    `directions` is p for all tensors, less where fewer are exact; or `error` the largest ||D_i - D^_i|| / ||D_i|| of
    any adapter, for which each tensor gets the fewest that keep to it. With neither every adapter is exact. Raises
    UsageError for both, fewer than two adapters, equal labels, a negative number of directions, and an error outside
    [0, 1); CompatibilityError for adapters of different bases.
    """
    names = labels_of(adapters, labels)
    _check(names, directions, error)
    _check_bases(adapters, names)
    tensors, report = {}, []
    for key, row in aligned(adapters, names).items():
        basis, facts = _tensor_basis(key, row, directions, error, form)
        tensors[key] = basis
        report.append(facts)
    return ReversibleBasis(
        tuple(names),
        form,
        tensors,
        tuple(a.replaced for a in adapters),
        tuple(a.added for a in adapters),
        next((a.base_reference for a in adapters if a.base_reference is not None), None),
        promote(a.dtype for a in adapters),
        tuple(report),
    )


def _tensor_basis(
    key: str,
    row: Sequence[Factors | None],
    directions: int | None,
    error: float | None,
    form: BasisForm,
) -> tuple[TensorBasis, BasisTensor]:
    present = [(i, f) for i, f in enumerate(row) if f is not None]
    members, first = tuple(i for i, _ in present), present[0][1]
    changes = [f.change for _, f in present]
    stacked = together(changes)
    count, _, rank = stacked.shape
    points = (stacked.reshape(count, 1, -1) if form == "whole" else stacked).swapaxes(0, 1)
    mean, values, vectors, coefficients = _components(points)
    most = len(values[0])

    def basis(p: int) -> TensorBasis:
        kept = coefficients[:, :, :p], vectors[:, :p]
        return TensorBasis(first, members, rank, mean, kept[1], kept[0])

    p = most if directions is None else min(directions, most)
    if error is not None:
        p = next(
            p for p in range(most + 1) if p == most or max(_errors(basis(p), changes)) <= error
        )
    found = basis(p)
    whole = math.hypot(*(float(np.linalg.norm(z)) for z in stacked))
    lost = math.sqrt(float(np.square(values[:, p:]).sum()))
    stored = sum(c.left.size + c.right.size for c in changes)
    facts = BasisTensor(
        key,
        p,
        found.numbers / stored if stored else 1.0,
        lost / whole if whole else 0.0,
        tuple(_errors(found, changes)),
    )
    return found, facts


def together(changes: Sequence[LowRankChange]) -> Matrix:
    """Factors of changes as (N, rows + columns, r), written alike: balanced, and turned towards their mean.

    r is the largest of the ranks; smaller ones have zeros. Each product is unchanged.
    """
    balanced = [truncated(change)[0] for change in changes]
    rank = max(change.rank for change in balanced)
    stacked = np.stack(
        [
            np.pad(np.concatenate([c.left, c.right.T]), ((0, 0), (0, rank - c.rank)))
            for c in balanced
        ]
    )
    # Turned towards the largest first, which does not depend on the order of the adapters.
    target = stacked[int(np.linalg.norm(stacked, axis=(1, 2)).argmax())]
    for _ in range(_ROUNDS):
        stacked = np.stack([z @ exact(np, z.T @ target).polar() for z in stacked])
        target = stacked.mean(axis=0)
    return stacked


def _components(points: Matrix) -> tuple[Matrix, Matrix, Matrix, Matrix]:
    """Mean, singular values, directions and coefficients of N points at each position, (P, N, d).

    The largest coefficient of each direction is positive. Directions that are rounding everywhere are left out.
    """
    mean = points.mean(axis=1)
    left, values, vectors = np.linalg.svd(points - mean[:, None], full_matrices=False)
    size = float(abs(points).max(initial=0.0))
    real = (values > _ROUNDING * size * math.sqrt(points.shape[2])).any(axis=0)
    kept = min(int(real.sum()), points.shape[1] - 1)
    left, values, vectors = left[:, :, :kept], values[:, :kept], vectors[:, :kept]
    largest = np.take_along_axis(left, abs(left).argmax(axis=1)[:, None], axis=1)
    sign = np.where(largest < 0.0, -1.0, 1.0)
    return mean, values, vectors * sign.swapaxes(1, 2), left * sign * values[:, None]


def _errors(basis: TensorBasis, changes: Sequence[LowRankChange]) -> list[float]:
    found = []
    for member, change in zip(basis.members, changes, strict=True):
        size = norm(change)
        off = norm(concatenated([(1.0, basis.change(member)), (-1.0, change)]))
        found.append(off / size if size else off)
    return found


def _check(labels: Sequence[str], directions: int | None, error: float | None) -> None:
    if len(labels) < 2:
        raise UsageError("A basis of one adapter is that adapter; give two or more.")
    if len(set(labels)) < len(labels):
        raise UsageError("Two adapters of a basis have the same label; give each its own.")
    if directions is not None and error is not None:
        raise UsageError("Give a basis a number of directions or an error, not both.")
    if directions is not None and directions < 0:
        raise UsageError(f"{directions} directions have no meaning: give 0 (the mean) or more.")
    if error is not None and not 0.0 <= error < 1.0:
        raise UsageError(f"A relative error of {error:g} has no meaning: give 0 or more, below 1.")


def _check_bases(adapters: Sequence[LowRankAdapter], labels: Sequence[str]) -> None:
    named = {a.base_reference: label for a, label in zip(adapters, labels, strict=True)}
    named.pop(None, None)
    if len(named) > 1:
        listed = ", ".join(f"{label} {shown(reference)}" for reference, label in named.items())
        raise CompatibilityError(
            f"The adapters name different bases ({listed}); make one basis for each base."
        )
