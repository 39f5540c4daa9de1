"""Orthogonal matching pursuit: rows as combinations of few other rows, found greedily.

For a row x and atoms a_j: take the atom whose direction is closest to the residual, x - its projection on the atoms
taken, and go on until k are taken or nothing is left. Atoms are compared by their directions, |a_j . r| / |a_j|; near
ties are settled in float64, then by the lower index. Projections are float64, by Gram-Schmidt done twice.

Rows are pursued in batches, and each step is one product of all atoms with a batch of residuals: 2 S d flops per row
and step for S atoms of width d, so 2 S d k per row. Threads share the atoms of a step, then the rows of the batch, in
parts that do not depend on how many threads there are. Memory: atoms are held as float32 up to `HELD_BYTES` (65,536
atoms of width 2048) and read again at each step beyond that; a batch takes 256 MiB, and a thread 8 KiB times the width.
Together less than 1 GiB on up to eight threads for widths to 4096, plus 16 k bytes per row of results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.tensors import in_parallel, one_blas_thread
from weightsmith.vocabularies.token_tables import Index, TokenTable, as_index

HELD_BYTES = 1 << 29
_BASIS_BYTES = 1 << 28
_LARGEST_BATCH = 256
_BLOCK = 2048
_ROWS_AT_A_TIME = 16
# Products of float32 are off by less than this share of the residual.
_MARGIN = np.float32(1e-5)
_NEAR_TIES = 8
# A direction that is left of an atom after projection, as a share of it, below which it is a combination of the others.
_DEPENDENT = 1e-7


@dataclass(frozen=True, slots=True, eq=False)
class Pursuit:
    """Row i is about the sum of coefficients[j] * shared row atoms[j] over starts[i] <= j < starts[i + 1].

    `atoms` are positions in the given list of atoms; `residuals` the lengths of what is left as a share of the rows'.
    """

    starts: Index
    atoms: Index
    coefficients: NDArray[np.float64]
    residuals: NDArray[np.float64]


def pursue(
    table: TokenTable,
    atom_rows: Index,
    wanted: Index,
    k: int,
    tolerance: float,
    held_bytes: int = HELD_BYTES,
) -> Pursuit:
    """Express the rows `wanted` of a table with at most `k` of its rows `atom_rows` each.

    A row is done when the residual is at most `tolerance` times the row, or no atom adds a direction to those taken; a
    row of zeros takes no atoms. Raises NonFiniteError where a row is not finite.
    """
    atoms = _Atoms(table, atom_rows, held_bytes)
    k = min(k, len(atom_rows), table.width)
    size = min(_LARGEST_BATCH, max(1, _BASIS_BYTES // (8 * max(k * table.width, 1))))
    batches = [wanted[start : start + size] for start in range(0, len(wanted), size)]
    with one_blas_thread():
        found = [_Batch(atoms, table.numbers(rows), k, tolerance).run() for rows in batches]
    empty: Any = (np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
    counts, taken, coefficients, residuals = (
        np.concatenate(parts) for parts in zip(empty, *found, strict=True)
    )
    starts = np.append(0, np.cumsum(counts)).astype(np.int64)
    return Pursuit(as_index(starts), as_index(taken), coefficients, residuals)


def pursuit_bytes(atoms: int, width: int, k: int) -> int:
    """Memory of `pursue` with that many atoms, at the most; see above."""
    k = min(k, atoms, width)
    batch = min(_LARGEST_BATCH, max(1, _BASIS_BYTES // (8 * max(k * width, 1))))
    held = 4 * atoms * width
    return (held if held <= HELD_BYTES else 0) + 8 * batch * k * width


class _Atoms:
    """The atoms, in memory or read as they are needed."""

    def __init__(self, table: TokenTable, rows: Index, held_bytes: int) -> None:
        self._table, self._rows = table, rows
        is_held = 4 * len(rows) * table.width <= held_bytes
        self._held = np.empty((len(rows), table.width), np.float32) if is_held else None
        self.norms = np.empty(len(rows))
        for start, block in table.blocks(rows):
            part = slice(start, start + len(block))
            if self._held is not None:
                self._held[part] = block
            self.norms[part] = np.sqrt(np.square(block, dtype=np.float64).sum(axis=1))
        inverse = np.zeros(len(rows))
        np.divide(1.0, self.norms, out=inverse, where=self.norms > 0)
        self.inverse_norms = inverse.astype(np.float32)

    @property
    def starts(self) -> range:
        """Where the blocks begin."""
        return range(0, len(self._rows), _BLOCK)

    def block(self, start: int) -> NDArray[np.float32]:
        """A block of atoms in float32."""
        if self._held is not None:
            return self._held[start : start + _BLOCK]
        return self._table.numbers(self._rows[start : start + _BLOCK]).astype(
            np.float32, copy=False
        )

    def directions(self, which: Index) -> NDArray[np.float64]:
        """Atoms of length 1, in float64."""
        numbers = self._table.numbers(self._rows[which]).astype(np.float64)
        return numbers / self.norms[which, None]


class _Batch:
    """Rows that are pursued together."""

    def __init__(self, atoms: _Atoms, rows: NDArray[Any], k: int, tolerance: float) -> None:
        self._atoms = atoms
        self._residual = rows.astype(np.float64)
        self._lengths = _lengths(self._residual)
        self._tolerance = tolerance
        n, width = rows.shape
        self._k = k
        self._basis = np.zeros((n, k, width))
        self._triangle = np.tile(np.eye(k), (n, 1, 1))
        self._projections = np.zeros((n, k))
        self._taken = np.zeros((n, k), np.int64)
        self._counts = np.zeros(n, np.int64)

    def run(self) -> tuple[Index, Index, NDArray[np.float64], NDArray[np.float64]]:
        """Numbers of atoms, the atoms, their coefficients, and relative residuals."""
        active = np.flatnonzero(self._lengths > 0)
        for step in range(self._k):
            left = _lengths(self._residual[active])
            active = active[left > self._tolerance * self._lengths[active]]
            if not len(active):
                break
            active = self._take(active, step)
        solved = np.linalg.solve(self._triangle, self._projections[:, :, None])[:, :, 0]
        used = np.arange(self._k) < self._counts[:, None]
        taken = self._taken[used]
        residuals = _lengths(self._residual) / np.where(self._lengths > 0, self._lengths, 1)
        return self._counts, taken, solved[used] / self._atoms.norms[taken], residuals

    def _take(self, active: Index, step: int) -> Index:
        """Give each active row one more atom; returns the rows that took one."""
        chosen = _closest(self._atoms, self._residual[active])
        active, chosen = active[chosen >= 0], chosen[chosen >= 0]
        directions = self._atoms.directions(chosen)

        def add(first: int) -> list[bool]:
            part = slice(first, first + _ROWS_AT_A_TIME)
            pairs = zip(active[part].tolist(), directions[part], strict=True)
            return [self._add(row, direction, step) for row, direction in pairs]

        parts = in_parallel(add, range(0, len(active), _ROWS_AT_A_TIME))
        is_new = np.array([new for part in parts for new in part], bool)
        active = active[is_new]
        self._taken[active, step] = chosen[is_new]
        self._counts[active] = step + 1
        return active

    def _add(self, row: int, direction: NDArray[np.float64], step: int) -> bool:
        """Extend the basis of a row; False where the direction lies in it already."""
        basis, overlap = self._basis[row, :step], np.zeros(step)
        for _ in range(2):
            again = basis @ direction
            direction -= again @ basis
            overlap += again
        remainder = float(np.linalg.norm(direction))
        if remainder <= _DEPENDENT:
            return False
        direction /= remainder
        projection = direction @ self._residual[row]
        self._residual[row] -= projection * direction
        self._basis[row, step] = direction
        self._triangle[row, :step, step] = overlap
        self._triangle[row, step, step] = remainder
        self._projections[row, step] = projection
        return True


def _closest(atoms: _Atoms, residual: NDArray[np.float64]) -> Index:
    """The atom of the closest direction for each residual (n, d); -1 where all are orthogonal to it."""
    unit = residual / _lengths(residual)[:, None]
    narrow = unit.astype(np.float32)
    found = in_parallel(lambda start: _close(atoms, start, narrow), atoms.starts)
    rows, columns, values = (np.concatenate(parts) for parts in zip(*found, strict=True))
    best = np.zeros(len(unit), np.float32)
    np.maximum.at(best, columns, values)
    close = values >= best[columns] - _MARGIN
    order = np.lexsort((rows[close], -values[close], columns[close]))
    rows, columns = rows[close][order], columns[close][order]
    return _settled(atoms, unit, rows, columns)


def _close(
    atoms: _Atoms, start: int, narrow: NDArray[np.float32]
) -> tuple[Index, Index, NDArray[np.float32]]:
    """Atoms of a block that may be the closest of the block: their numbers, the residuals', and absolute cosines."""
    block = atoms.block(start)
    cosines = np.abs(block @ narrow.T)
    cosines *= atoms.inverse_norms[start : start + len(block), None]
    floor = np.maximum(cosines.max(axis=0) - _MARGIN, 2 * _MARGIN)
    rows, columns = np.nonzero(cosines >= floor)
    return rows + start, columns, cosines[rows, columns]


def _settled(atoms: _Atoms, unit: NDArray[np.float64], rows: Index, columns: Index) -> Index:
    """The closest of the first few candidates (sorted by column) of each column, in float64."""
    counts = np.bincount(columns, minlength=len(unit))
    firsts = np.cumsum(counts) - counts
    chosen = np.full(len(unit), -1)
    chosen[counts > 0] = rows[firsts[counts > 0]]
    ranks = np.arange(len(rows)) - firsts[columns]
    tied = (counts[columns] > 1) & (ranks < _NEAR_TIES)
    rows, columns = rows[tied], columns[tied]
    if len(rows):
        exact = np.abs(np.einsum("nd,nd->n", atoms.directions(rows), unit[columns]))
        # Equal directions differ by rounding only, and the lower index is theirs.
        order = np.lexsort((rows, -np.round(exact, 12), columns))
        first = np.flatnonzero(np.diff(columns[order], prepend=-1))
        chosen[columns[order][first]] = rows[order][first]
    return chosen


def _lengths(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    squares: NDArray[np.float64] = np.einsum("nd,nd->n", rows, rows)
    return np.sqrt(squares)
