"""Linear maps from the rows of one table to those of another, fitted on tokens that both have.

With rows x of the donor and y of the own table, both relative to their means, and the matrices G = X^T X and
C = X^T Y over the shared tokens: least squares is W = (G + r I)^-1 C, without the directions in which G has nothing;
Procrustes is W = U V^T of the singular value decomposition C = U S V^T, without those in which C has nothing.
A row is x W + mean(y).

Products are float64, summed block by block in one order. Memory: G, C, and what a decomposition takes, about
6 (d_donor + d_own) d_donor numbers of 8 bytes (0.4 GB for two widths of 2048, 1.6 GB for 4096), however long
the tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.graph import exact
from weightsmith.tensors import DType, in_parallel, one_blas_thread
from weightsmith.vocabularies.token_tables import (
    Identity,
    Index,
    TokenTable,
    Words,
    array_digest,
    as_index,
)

Matrix = NDArray[np.float64]

# Directions that weak beside the strongest one, or beside the rows before their mean was taken off, hold rounding only.
_FLOOR = 1e-12
_PANEL = 256
_BLOCK_BYTES = 1 << 25
# Rows are mapped in blocks that lie at multiples of this, so that their bits do not depend on what is read together.
_MAPPED_AT_A_TIME = 32


@dataclass(frozen=True, slots=True, eq=False)
class RowMap:
    """x -> (x - source_mean) matrix + target_mean; matrix (d_donor, d_own). `rank` directions carry something."""

    matrix: Matrix
    source_mean: Matrix
    target_mean: Matrix
    rank: int

    def apply(self, rows: NDArray[Any]) -> Matrix:
        """The images of rows (n, d_donor), in float64."""
        return (rows - self.source_mean) @ self.matrix + self.target_mean


def fitting_bytes(donor_width: int, own_width: int) -> int:
    """Memory of a fit; see above."""
    return 48 * (donor_width + own_width) * donor_width


def mean_row(table: TokenTable, rows: Index) -> Matrix:
    """The mean of rows, summed in float64; raises NonFiniteError where one is not finite."""
    total = np.zeros(table.width)
    for _, block in table.blocks(rows):
        total += block.sum(axis=0, dtype=np.float64)
    return total / max(len(rows), 1)


def fit_least_squares(
    donor: TokenTable,
    donor_rows: Index,
    own: TokenTable,
    own_rows: Index,
    ridge: float,
    intercept: bool,
) -> RowMap:
    """The least-squares map over pairs of rows, with a ridge of `ridge` times the mean eigenvalue of G.

    Where there are fewer pairs than dimensions it is the smallest map that fits them. Raises NonFiniteError.
    """
    moments = _moments(donor, donor_rows, own, own_rows, intercept)
    gram, cross = moments.gram, moments.cross
    with one_blas_thread():
        spectrum, vectors = np.linalg.eigh(gram)
        # The eigenvalues are squares, and so is the second floor.
        kept = spectrum > max(_FLOOR * float(spectrum[-1]), _FLOOR**2 * moments.source_energy)
        spectrum, vectors = spectrum[kept], vectors[:, kept]
        inverse = 1.0 / (spectrum + ridge * np.trace(gram) / len(gram))
        matrix = vectors @ (inverse[:, None] * (vectors.T @ cross))
    return RowMap(matrix, moments.source_mean, moments.target_mean, int(kept.sum()))


def fit_procrustes(
    donor: TokenTable,
    donor_rows: Index,
    own: TokenTable,
    own_rows: Index,
    centre: bool,
    scale: bool,
) -> RowMap:
    """The (partial) isometry W of largest tr(W^T C) over pairs of rows, times the factor tr(W^T C) / tr(W^T G W).

    It is the isometry of least squared error where d_donor <= d_own. Raises NonFiniteError.
    """
    moments = _moments(donor, donor_rows, own, own_rows, centre)
    with one_blas_thread():
        found = exact(np, moments.cross)
        energy = (moments.source_energy * moments.target_energy) ** 0.5
        shared = found.only(found.values > _FLOOR * max(float(found.values[0]), energy))
        matrix = shared.polar()
        if scale and shared.rank:
            spread = float(np.vdot(matrix, moments.gram @ matrix))
            matrix *= float(shared.values.sum()) / spread
    return RowMap(matrix, moments.source_mean, moments.target_mean, shared.rank)


@dataclass(frozen=True, slots=True, eq=False)
class _Moments:
    gram: Matrix
    cross: Matrix
    source_mean: Matrix
    target_mean: Matrix
    source_energy: float
    target_energy: float


def _moments(
    donor: TokenTable, donor_rows: Index, own: TokenTable, own_rows: Index, centre: bool
) -> _Moments:
    inner, outer = donor.width, own.width
    source_mean, target_mean = np.zeros(inner), np.zeros(outer)
    if centre:
        source_mean, target_mean = mean_row(donor, donor_rows), mean_row(own, own_rows)
    products = np.zeros((inner, inner + outer))
    panels = [slice(at, at + _PANEL) for at in range(0, inner + outer, _PANEL)]
    energies = np.zeros(2)
    step = max(1, _BLOCK_BYTES // (8 * (inner + outer)))
    for start in range(0, len(donor_rows), step):
        part = slice(start, start + step)
        pair = donor.numbers(donor_rows[part]), own.numbers(own_rows[part])
        energies += [np.square(rows, dtype=np.float64).sum() for rows in pair]
        x = pair[0] - source_mean
        both = np.hstack([x, pair[1] - target_mean])

        def add(panel: slice, x: Matrix = x, both: Matrix = both) -> None:
            products[:, panel] += x.T @ both[:, panel]

        in_parallel(add, panels)
    means = source_mean, target_mean
    return _Moments(products[:, :inner], products[:, inner:], *means, *energies.tolist())


@dataclass(frozen=True, slots=True, eq=False)
class Mapped:
    """Row i is the image of row `rows[i]` of `donor` under a linear map into the rows of `own`."""

    donor: TokenTable
    rows: Index
    map: RowMap
    own: TokenTable

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", as_index(self.rows))
        self.donor.require_rows(self.rows)

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self.rows)

    @property
    def width(self) -> int:
        """Elements of a row."""
        return self.own.width

    @property
    def dtype(self) -> DType:
        """float32, or float64 if the own table is float64."""
        return self.own.wide_dtype

    @property
    def tables(self) -> tuple[TokenTable, ...]:
        """The donor's table: the map is fitted already."""
        return (self.donor,)

    @property
    def identity(self) -> Identity:
        """Table, index and map."""
        numbers = (self.map.matrix, self.map.source_mean, self.map.target_mean)
        digests = tuple(array_digest(array) for array in (self.rows, *numbers))
        return ("mapped", self.donor.identity, *digests)

    def prepare(self) -> None:
        """Nothing to do."""

    def read(self, which: Index) -> Words:
        """The images, as the words of `dtype`."""
        is_wide = self.dtype is DType.FLOAT64
        out = np.empty((len(which), self.width), "<f8" if is_wide else "<f4")
        numbers = which // _MAPPED_AT_A_TIME
        with one_blas_thread():
            for number in np.unique(numbers).tolist():
                chosen = np.flatnonzero(numbers == number)
                out[chosen] = self._block(number)[which[chosen] - number * _MAPPED_AT_A_TIME]
        return out.view("<u8" if is_wide else "<u4")

    def _block(self, number: int) -> Matrix:
        """One block of images, of full length even at the end: a product's bits depend on its shape."""
        rows = self.rows[number * _MAPPED_AT_A_TIME : (number + 1) * _MAPPED_AT_A_TIME]
        block = np.zeros((_MAPPED_AT_A_TIME, self.donor.width))
        block[: len(rows)] = self.donor.numbers(rows)
        return self.map.apply(block)
