"""Exact k-th magnitudes from streamed rounds of bounded memory, without sorting.

Magnitudes in work precision order like their bit patterns ("keys"). A `Selection` narrows a bracket
of keys until the elements inside are few enough to be collected with their flat indices, and then
picks the k-th exactly, equal keys by lower index:

* a first guess of the bracket comes from a histogram over a sample, so that usually one streamed round is enough; of
  very large populations a second one looks inside that bracket, whose bins would hold too many elements;
* a wrong guess costs one more round, never a wrong answer: the counts above the bracket are exact;
* a bracket with too many elements is narrowed by a 65536-bin histogram; one that holds a single key
  with more equal elements than the limit is resolved piece of memory by piece of memory, in index
  order, or by their ranks (`equal_magnitudes`);
* where the guess is such a key, ranks are guessed from the sample too, so that one round is still enough.

The engine asks `request()`, streams the tensor (or every tensor of the model), hands the tiles' answers to `absorb` in
order, and stops when `result` is there.
"""

from __future__ import annotations

import math
import struct
import threading
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from weightsmith.graph.equal_magnitudes import Ranks, RankSearch, around, lowest
from weightsmith.graph.passes import (
    HISTOGRAM_BINS,
    Collect,
    CollectPart,
    Equal,
    Histogram,
    HistogramPart,
    Request,
    ShareOf,
    ThresholdPoint,
)

ALL_INDICES = (1 << 62) - 1
_COLLECT_LIMIT = 1 << 16
_TOTAL_LIMIT = 1 << 20
_SAMPLE_SIGMAS = 8.0
_SMALL = 1 << 18
_LARGE = 1 << 28


def key_to_magnitude(key: int, key_bits: int) -> float:
    """The magnitude whose bit pattern is `key`."""
    if key_bits == 31:
        return float(struct.unpack("<f", struct.pack("<I", key))[0])
    return float(struct.unpack("<d", struct.pack("<Q", key))[0])


def bounded(request: Request | None) -> bool:
    """True for requests whose collected lists may be dropped when there are too many (one tile's alone may not)."""
    if isinstance(request, Collect):
        return request.only_part is None
    return isinstance(request, Equal)


class CollectedParts:
    """Gathers the tiles' answers to `Collect` or `Equal`, dropping lists, never counts, once there are too many.

    Thread-safe; one may serve all tensors of a model.
    """

    def __init__(self, total_limit: int = _TOTAL_LIMIT) -> None:
        self._left = total_limit
        self._lock = threading.Lock()

    def admit(self, part: CollectPart) -> CollectPart:
        """The part to keep: as it is, or with empty lists."""
        with self._lock:
            self._left -= len(part.keys)
            if self._left >= 0:
                return part
        # Not a slice of the lists: it would keep all of them alive.
        return replace(part, keys=np.empty(0, np.uint64), indices=np.empty(0, np.int64))


class SummedHistograms:
    """Adds up the tiles' answers to `Histogram` as they come, so that one is held, however many tiles there are.

    Thread-safe; one may serve all tensors of a model.
    """

    def __init__(self) -> None:
        self._counts = np.zeros(HISTOGRAM_BINS, dtype=np.uint64)
        self._above = 0
        self._lock = threading.Lock()

    def admit(self, part: HistogramPart) -> None:
        """Add a part."""
        with self._lock:
            self._counts += part.counts
            self._above += part.above

    @property
    def total(self) -> HistogramPart:
        """The sum of all parts."""
        return HistogramPart(self._counts, self._above)


Gate = CollectedParts | SummedHistograms


def gate_for(request: Request | None) -> Gate | None:
    """What the tiles' answers to a request pass through so that memory stays bounded; None where they are small."""
    if isinstance(request, Histogram):
        return SummedHistograms()
    return CollectedParts() if bounded(request) else None


class Selection:
    """Find the k-th largest of `population` magnitudes; k may be a share of those that are not zero.

    Keys have `key_bits` bits: 31 for float32, 63 for float64. With `ranks`, which gives the rank at an index, equal
    magnitudes are taken in the order of their ranks and not of their indices.
    """

    def __init__(
        self,
        k: int | ShareOf,
        population: int,
        key_bits: int,
        limit: int = _COLLECT_LIMIT,
        ranks: Ranks | None = None,
    ) -> None:
        # The rule until the first full round has counted the nonzero elements; `k` is a guess up to then.
        self._rule = None if isinstance(k, int) else k
        self.k = k if isinstance(k, int) else k(population)
        self.key_bits = key_bits
        self.limit = limit
        self.result: ThresholdPoint | None = None
        # Invariant: the k-th key lies in [low, high], and `above` keys are larger than high.
        self.low, self.high, self.above = 1, (1 << key_bits) - 1, 0
        self._population = population
        self._inside = population
        self._guess: tuple[int, int] | None = None
        # How many were sampled in all, above the guess, and from it upwards, and how many elements it may hold.
        self._sampled, self._sampled_above, self._sampled_from, self._expected = 0.0, 0.0, 0.0, 0.0
        # Of the last sample's bins; 0 where narrower ones would tell nothing new.
        self._shift = 0
        self._tie_part: tuple[int, int] | None = None
        self._ranks = ranks
        self._rank_search: RankSearch | None = None
        self._end_if_empty()

    @property
    def sample_request(self) -> Histogram | None:
        """The request to run on a sample first, and again until it is None: the population is small enough to be
        collected at once, or the sample has told what it can.
        """
        if self.result is not None or self._population <= _SMALL:
            return None
        if not self._sampled:
            return Histogram(0, self.key_bits - 16)
        if self._guess is None:
            return None
        narrower = _within(*self._guess)
        is_first_of_many = self._shift == self.key_bits - 16 and self._population > _LARGE
        wanted = is_first_of_many or self._holds_too_many(*self._guess)
        return narrower if wanted and narrower.shift < self._shift else None

    def absorb_sample(self, asked: Histogram, parts: Iterable[HistogramPart]) -> None:
        """Guess a bracket from a histogram of sampled elements."""
        counts = _summed(parts)
        is_first = not self._sampled
        self._sampled = self._sampled or float(counts.sum())
        if self._sampled == 0.0:
            self._sampled = 1.0
            return
        if is_first and self._rule is not None:
            self.k = self._rule(round((1.0 - float(counts[0]) / self._sampled) * self._population))
        share = min(1.0, self.k / self._population)
        spread = sample_spread(share, self._sampled)
        wanted = share * self._sampled
        beyond = 0.0 if is_first else max(0.0, self._sampled_from - float(counts.sum()))
        from_top = beyond + np.cumsum(counts[::-1])
        upper = int(np.searchsorted(from_top, wanted - spread, side="left"))
        lower = int(np.searchsorted(from_top, wanted + spread, side="left"))
        low, high = self._guess or (1, self.high)
        top_bin = HISTOGRAM_BINS - 1 - min(upper, HISTOGRAM_BINS - 1)
        low_bin = max(0, HISTOGRAM_BINS - 1 - lower)
        if wanted > spread:
            high = min(high, max(1, asked.low + ((top_bin + 1) << asked.shift) - 1))
        above = float(from_top[upper - 1]) if upper and wanted > spread else beyond
        self._sampled_above = above
        self._sampled_from = float(from_top[min(lower, HISTOGRAM_BINS - 1)])
        # The lowest bin of the first histogram has the zeros too, which no bracket holds.
        zeros = float(counts[0]) if is_first and low_bin == 0 else 0.0
        inside = max(0.0, self._sampled_from - above - zeros)
        self._expected = inside / self._sampled * self._population
        low = max(low, asked.low + (low_bin << asked.shift))
        self._guess = (low, max(low, high))
        self._shift = 0 if is_first and low_bin == 0 else asked.shift

    def request(self) -> Request:
        """What to ask of every tile in the next round."""
        if self._rank_search is not None:
            return self._rank_search.request()
        if self._tie_part is not None:
            return Collect(self.low, self.high, 1 << 62, only_part=self._tie_part[0])
        if self._guess is not None and self._holds_too_many(*self._guess):
            if self._rule is None:
                return _within(*self._guess)
            self._guess = None  # for bins from the smallest key on, which count what is not zero
        if self._guess is not None:
            return self._tied_guess() or Collect(self._guess[0], self._guess[1], self.limit)
        if self._inside <= self.limit or self.low == self.high:
            return Collect(self.low, self.high, self.limit)
        span = self.high - self.low + 1
        return Histogram(self.low, max(0, (span - 1).bit_length() - 16))

    def _holds_too_many(self, low: int, high: int) -> bool:
        """Whether the lists of a guess would be dropped; those of a single key need not be kept."""
        return low < high and self._expected > 0.75 * _TOTAL_LIMIT

    def _tied_guess(self) -> Equal | None:
        """Where the guess is one key that too many elements have: those around the rank that is to be expected."""
        low, high = self._guess or (0, 1)
        if self._ranks is None or self._rule or low < high or self._expected <= self.limit:
            return None
        sampled = self._sampled_from - self._sampled_above
        wanted = self.k / self._population * self._sampled - self._sampled_above
        spread = sample_spread(self.k / self._population, self._sampled)
        most = 0.25 * _TOTAL_LIMIT / self._expected
        return around(low, wanted / sampled, min(spread / sampled, most))

    def absorb(self, asked: Request, parts: Sequence[HistogramPart | CollectPart]) -> None:
        """Take the answers of one round, in the order of the tiles."""
        if self._rule is not None:
            self.k, self._rule = self._rule(_nonzero(parts)), None
            self._end_if_empty()
            if self.result is not None:
                return
        if isinstance(asked, Equal):
            self._pick_equal(asked, [p for p in parts if isinstance(p, CollectPart)])
        elif self._tie_part is not None:
            (part,) = [p for p in parts if isinstance(p, CollectPart)]
            self._resolve(self.low, int(part.indices[self._tie_part[1] - 1]))
        elif isinstance(asked, Histogram):
            self._narrow(asked, [p for p in parts if isinstance(p, HistogramPart)])
        elif isinstance(asked, Collect):
            self._pick(asked, [p for p in parts if isinstance(p, CollectPart)])

    def _narrow(self, asked: Histogram, parts: Sequence[HistogramPart]) -> None:
        self._guess = None
        counts = _summed(parts)
        above = sum(p.above for p in parts)
        from_top = above + np.cumsum(counts[::-1])
        end = asked.low + (HISTOGRAM_BINS << asked.shift)
        if self.k <= above:
            self.low, self._inside = end, above - self.above
            return
        position = int(np.searchsorted(from_top, self.k, side="left"))
        if position >= HISTOGRAM_BINS:
            self._continue_below(asked.low, int(from_top[-1]))
            return
        bin_index = HISTOGRAM_BINS - 1 - position
        self._inside = int(counts[bin_index])
        self.above = int(from_top[position]) - self._inside
        self.low = asked.low + (bin_index << asked.shift)
        self.high = min(self.high, self.low + (1 << asked.shift) - 1)
        if self._ranks is not None and self.low == self.high and self._inside > self.limit:
            self._rank_search = RankSearch(self.low, self.k - self.above, self._inside)
            self._resolve_ranked()

    def _continue_below(self, key: int, above: int) -> None:
        self.above, self.high = above, key - 1
        self._inside = self._population - above
        if self.high < self.low:
            self._only_zeros_left()

    def _pick(self, asked: Collect, parts: Sequence[CollectPart]) -> None:
        inside = sum(p.inside for p in parts)
        above = sum(p.above for p in parts)
        if self._guess is not None:
            self._guess = None
            if self.k <= above:
                self.low = asked.high + 1
                self._inside = above
                return
            if self.k > above + inside:
                self._continue_below(asked.low, above + inside)
                return
            self.low, self.high, self.above, self._inside = asked.low, asked.high, above, inside
        elif self.k > above + inside:
            self._only_zeros_left()
            return
        wanted = self.k - self.above
        if sum(len(p.keys) for p in parts) == inside:
            keys = np.concatenate([p.keys for p in parts])
            self._finish(keys, np.concatenate([p.indices for p in parts]), wanted)
        elif asked.low == asked.high:
            self._finish_ties(asked.low, parts, wanted)
        else:
            self._inside = max(
                inside, self.limit + 1
            )  # too many to hold: narrow by a histogram next

    def _pick_equal(self, asked: Equal, parts: Sequence[CollectPart]) -> None:
        if self._rank_search is None and not self._is_tied_guess_right(asked.key, parts):
            return
        assert self._rank_search is not None
        if self._rank_search.result is None:
            self._rank_search.absorb(asked, parts)
        self._resolve_ranked()

    def _is_tied_guess_right(self, key: int, parts: Sequence[CollectPart]) -> bool:
        """Whether the k-th magnitude is that of the guess, so that the search goes on among its ranks."""
        self._guess = None
        larger, equal = sum(p.larger for p in parts), sum(p.equal for p in parts)
        if self.k <= larger:
            self.low, self._inside = key + 1, larger
        elif self.k > larger + equal:
            self._continue_below(key, larger + equal)
        else:
            self.low = self.high = key
            self._rank_search = RankSearch(key, self.k - larger, equal)
        return self._rank_search is not None

    def _finish(self, keys: NDArray[np.uint64], indices: NDArray[np.int64], wanted: int) -> None:
        position = len(keys) - wanted
        key = int(np.partition(keys, position)[position])
        ties_wanted = wanted - int(np.count_nonzero(keys > np.uint64(key)))
        equal = indices[keys == np.uint64(key)]
        if self._ranks is None or ties_wanted == len(equal):
            self._resolve(key, int(equal[ties_wanted - 1]))
        else:
            rank, index = lowest(ties_wanted, self._ranks(equal), equal)
            self._resolve(key, index, rank)

    def _finish_ties(self, key: int, parts: Sequence[CollectPart], wanted: int) -> None:
        """All collected keys are equal: skip tiles by their counts, then look inside one (or ask again)."""
        self.low = self.high = key
        if self._ranks is not None:
            self._rank_search = RankSearch(key, wanted, sum(part.inside for part in parts))
            return self._resolve_ranked()
        for ordinal, part in enumerate(parts):
            if wanted > part.inside:
                wanted -= part.inside
            elif wanted <= len(part.indices):
                return self._resolve(key, int(part.indices[wanted - 1]))
            else:
                self._tie_part = (ordinal, wanted)
                return None
        raise AssertionError("the k-th key lies in the bracket")

    def _resolve_ranked(self) -> None:
        assert self._rank_search is not None
        if self._rank_search.result is not None:
            rank, index = self._rank_search.result
            self._resolve(self.low, index, rank)

    def _resolve(self, key: int, last_index: int, last_rank: int | None = None) -> None:
        magnitude = key_to_magnitude(key, self.key_bits)
        self.result = ThresholdPoint(key, last_index, magnitude, last_rank)

    def _end_if_empty(self) -> None:
        if self.k <= 0:
            self.result = ThresholdPoint((1 << self.key_bits) - 1, -1, float("inf"))

    def _only_zeros_left(self) -> None:
        self.result = ThresholdPoint(0, -1, 0.0)


def sample_spread(share: float, sampled: float) -> float:
    """How far from its expectation the number of a share's elements in a sample may lie."""
    return _SAMPLE_SIGMAS * math.sqrt(share * (1 - share) * sampled) + _SAMPLE_SIGMAS


def _within(low: int, high: int) -> Histogram:
    return Histogram(low, max(0, (high - low).bit_length() - 16))


def _nonzero(parts: Sequence[HistogramPart | CollectPart]) -> int:
    """How many keys are not 0, by the answers to `Collect`, or to `Histogram` from key 1 on."""
    return sum(
        p.nonzero if isinstance(p, CollectPart) else int(p.counts.sum()) + p.above for p in parts
    )


def _summed(parts: Iterable[HistogramPart]) -> NDArray[np.int64]:
    counts = np.zeros(HISTOGRAM_BINS, dtype=np.int64)
    for part in parts:
        counts += part.counts.astype(np.int64)
    return counts


def local_threshold(
    threshold: ThresholdPoint, offset: int, numel: int, rank_key: int = 0
) -> ThresholdPoint:
    """A model-wide cut as one tensor sees it, whose elements have global indices [offset, offset + numel)."""
    last = threshold.last_index - offset
    last = ALL_INDICES if last >= numel else max(last, -1)
    return ThresholdPoint(threshold.key, last, threshold.magnitude, threshold.last_rank, rank_key)
