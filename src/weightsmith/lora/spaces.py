"""Spaces in which changes of low rank are merged: what a nonlinear rule sees of them, and the way back.

A rule such as TIES or DARE works on elements, so its result depends on the coordinates. Factors are no coordinates:
a rule on B and on A apart depends on how the product is written. Beside the elements of the changes there are

    knots     coefficients in the joint singular basis of all changes (Stoica et al., ICLR 2025, arXiv:2410.19735)
    core      the change between the spans of all left and of all right factors (arXiv:2509.17786)

which do not depend on it. In all of them a weighted sum is the weighted sum of the changes, and both cost
O((m + n) R^2) for R ranks together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np

from weightsmith.deltas import LowRankChange, Matrix
from weightsmith.graph import Spectrum, exact
from weightsmith.lora.algebra import dense_spectrum, signed, spectrum, truncated
from weightsmith.lora.bounds import RankBound, TruncatedChange, truncate_spectrum

# Coefficients below this share of a task's largest are rounding: where a task has no part it must not vote.
_NOISE = 2.0**-40
# Directions below this share of the strongest are the rounding of factors that were stored in float32.
_STORED = 2.0**-22


@dataclass(frozen=True, slots=True, eq=False)
class Entered:
    """The changes of one tensor in a space: their coordinates, of one shape, and the way back, cut to a bound.

    Changes that are all zero have coordinates without an element.
    """

    coordinates: list[Matrix]
    leave: Callable[[Matrix, RankBound], TruncatedChange]

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the coordinates of each change."""
        rows, columns = self.coordinates[0].shape
        return rows, columns


class Space(Protocol):
    """How the changes of one tensor are seen together; `name` is what recipes call it."""

    name: ClassVar[str]

    def enter(self, changes: Sequence[LowRankChange], *, input_first: bool = False) -> Entered:
        """Coordinates of changes of one shape."""
        ...


@dataclass(frozen=True, slots=True)
class KnotsSpace:
    """T_i of [D_1 .. D_N] = U S [V_1 .. V_N]^T, so that D_i = U T_i; exact, from QRs and one R x R decomposition.

    side: whether the common basis U is that of the outputs (the authors' concat_across_output) or of the inputs.
    basis: T_i = S V_i^T (orthonormal, the authors' code) or T_i = V_i^T with the basis U S (scaled), from which
    directions below 2^-22 of the strongest are left out.
    """

    name: ClassVar[str] = "knots"
    side: Literal["outputs", "inputs"] = "outputs"
    basis: Literal["orthonormal", "scaled"] = "orthonormal"

    def enter(self, changes: Sequence[LowRankChange], *, input_first: bool = False) -> Entered:
        """T_1 .. T_N of R rows."""
        turned = (self.side == "inputs") is not input_first
        sides = [_transposed(c) if turned else c for c in changes]
        left, values = self._joint(sides)
        if self.basis == "scaled":
            # Divided by its singular value, what float32 factors leave of rounding would be as large as anything else.
            real = values > values.max(initial=0.0) * _STORED
            left, values = left[:, real], values[real]
        images = [(left.T @ c.left) @ c.right * c.scale for c in sides]
        if self.basis == "scaled":
            images = [image / values[:, None] for image in images]
            left = left * values
        images = [_without_noise(image) for image in images]

        def leave(merged: Matrix, bound: RankBound) -> TruncatedChange:
            change = LowRankChange(left, merged)
            return truncate_spectrum(spectrum(_transposed(change) if turned else change), bound)

        return Entered(images, leave)

    def _joint(self, changes: Sequence[LowRankChange]) -> tuple[Matrix, Matrix]:
        """U and S of the changes beside each other."""
        basis, factor = np.linalg.qr(np.concatenate([c.left for c in changes], 1))
        cores, first = [], 0
        for change in changes:
            own = factor[:, first : first + change.rank]
            cores.append(own @ np.linalg.qr(change.right.T)[1].T * change.scale)
            first += change.rank
        core = np.concatenate(cores, 1)
        found = exact(np, core)
        whole = signed(Spectrum(basis @ found.left, found.values, found.right))
        return whole.left, whole.values


@dataclass(frozen=True, slots=True)
class CoreSpace:
    """M_i = U_B^T D_i V_A, R x R or smaller, so that D_i = U_B M_i V_A^T: bases of all left and all right factors.

    gauge: factors are balanced (B = U sqrt(S), A = sqrt(S) V^T) before their common bases are sought, so that results
    do not depend on how the product was written; `stored` takes them as they are, as the authors' code does.
    """

    name: ClassVar[str] = "core"
    gauge: Literal["balanced", "stored"] = "balanced"

    def enter(self, changes: Sequence[LowRankChange], *, input_first: bool = False) -> Entered:
        """M_1 .. M_N."""
        if self.gauge == "balanced":
            changes = [truncated(c)[0] for c in changes]
        left = _span([c.left for c in changes])
        right = _span([c.right.T for c in changes])
        cores = [_without_noise((left.T @ c.left) @ (c.right @ right) * c.scale) for c in changes]

        def leave(merged: Matrix, bound: RankBound) -> TruncatedChange:
            inner = dense_spectrum(merged)
            whole = Spectrum(left @ inner.left, inner.values, inner.right @ right.T)
            return truncate_spectrum(signed(whole), bound)

        return Entered(cores, leave)


def _span(blocks: Sequence[Matrix]) -> Matrix:
    """The left singular vectors of the blocks beside each other, as many as their rank."""
    basis, factor = np.linalg.qr(np.concatenate(list(blocks), 1))
    found = exact(np, factor)
    left: Matrix = signed(Spectrum(basis @ found.left, found.values, found.right)).left
    return left


def _transposed(change: LowRankChange) -> LowRankChange:
    return LowRankChange(change.right.T, change.left.T, change.scale)


def _without_noise(coordinates: Matrix) -> Matrix:
    sizes = abs(coordinates)
    return np.where(sizes > _NOISE * sizes.max(initial=0.0), coordinates, 0.0)
