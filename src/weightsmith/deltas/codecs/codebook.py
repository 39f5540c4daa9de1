"""Lloyd-Max codebooks: the levels that leave the least squared error, and the code of each value.

    thresholds  half way between neighbouring levels
    levels      the mean of the values between their thresholds

repeated until nothing moves (Lloyd, 1982; Max, 1960), over a histogram whose bins are 2^-7 of a value wide and count as
evenly filled. In the end thresholds are put on the edges of bins, which moves them by 0.4 % at most and the error, flat
at the optimum, by a few hundred-thousandths; levels are then the means of the values themselves.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from weightsmith.deltas.codecs.codes import Codes
from weightsmith.deltas.codecs.delta_codec import BINS, Change, bin_edges, bins_of

_MOST_STEPS = 2000
# Levels have settled when no step moves one by more than this share of the largest.
_SETTLED = 1e-6
# Lower edges of the bins in the order of values, and the upper edge of the last.
_EDGES = bin_edges()
Histogram = tuple[NDArray[np.float64], NDArray[np.float64]]


class Codebook:
    """`levels`, rising float32 numbers, and the code of every bin of a histogram."""

    def __init__(self, levels: NDArray[np.float32], edges: NDArray[np.intp]) -> None:
        self.levels = levels
        self._code_of_bin = np.searchsorted(edges, np.arange(BINS), side="right").astype(np.uint8)

    def codes(self, values: Change) -> Codes:
        """The code of each value."""
        return self._code_of_bin[bins_of(values)]


def fitted_codebook(histogram: Histogram, count: int) -> Codebook:
    """The codebook of `count` levels for the values of a histogram; it depends on nothing else.

    Starts from shares with equal cube roots of density (Panter and Dite, 1951), which are near the optimum. Fewer
    distinct values than levels leave levels that no value takes. A histogram without values has no codebook.
    """
    counts, sums = histogram
    used = np.flatnonzero(counts)
    if len(used) <= count:
        return _exact(sums[used] / counts[used], used, count)
    filled = _Filled(counts[used], sums[used], used)
    thresholds = filled.first_thresholds(count)
    levels = filled.means(thresholds, np.zeros(count))
    for _ in range(_MOST_STEPS):
        moved = np.sort(filled.means((levels[1:] + levels[:-1]) / 2, levels))
        gap = np.abs(moved - levels).max()
        levels = moved
        if gap <= _SETTLED * np.abs(levels).max():
            break
    edges = _nearest_edges((levels[1:] + levels[:-1]) / 2)
    ends = np.concatenate([[0], edges, [BINS]])
    held = np.add.reduceat(np.append(counts, 0.0), ends)[:-1] * (np.diff(ends) > 0)
    total = np.add.reduceat(np.append(sums, 0.0), ends)[:-1]
    np.divide(total, held, out=levels, where=held > 0)
    return Codebook(levels.astype(np.float32), edges)


def _exact(centres: NDArray[np.float64], used: NDArray[np.intp], count: int) -> Codebook:
    """A level for every bin that holds values; the last is repeated."""
    levels = np.pad(centres, (0, count - len(centres)), mode="edge")
    edges = np.pad(used[1:], (0, count - len(centres)), constant_values=BINS)
    return Codebook(levels.astype(np.float32), edges)


class _Filled:
    """The bins that hold values, each evenly filled between its edges."""

    def __init__(
        self, counts: NDArray[np.float64], sums: NDArray[np.float64], used: NDArray[np.intp]
    ) -> None:
        low, high = _EDGES[used], _EDGES[used + 1]
        self._places = np.stack([low, high], axis=1).reshape(-1)
        self._total = _running(counts)
        self._weighted = _running(sums)
        self._density = counts / (high - low)
        self._widths = high - low

    def first_thresholds(self, count: int) -> NDArray[np.float64]:
        """Where the cube root of the density has its quantiles."""
        shares = _running(np.cbrt(self._density) * self._widths)
        wanted = shares[-1] * np.arange(1, count) / count
        found: NDArray[np.float64] = np.interp(wanted, shares, self._places)
        return found

    def means(
        self, thresholds: NDArray[np.float64], before: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """The mean between neighbouring thresholds; a level that no value takes stays where it was."""
        held = self._between(thresholds, self._total)
        found: NDArray[np.float64] = before.copy()
        np.divide(self._between(thresholds, self._weighted), held, out=found, where=held > 0)
        return found

    def _between(
        self, thresholds: NDArray[np.float64], running: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        inner = np.interp(thresholds, self._places, running)
        return np.diff(np.concatenate([[0.0], inner, running[-1:]]))


def _running(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The running sum at the lower and the upper edge of each bin."""
    after = np.cumsum(values)
    return np.stack([after - values, after], axis=1).reshape(-1)


def _nearest_edges(thresholds: NDArray[np.float64]) -> NDArray[np.intp]:
    """The bins whose lower edges are nearest to the thresholds."""
    above = np.clip(np.searchsorted(_EDGES, thresholds), 1, BINS)
    is_lower = thresholds - _EDGES[above - 1] < _EDGES[above] - thresholds
    found: NDArray[np.intp] = above - is_lower
    return found
