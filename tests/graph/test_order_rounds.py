"""How many rounds a selection of the k largest takes, what it asks for in them, and how much it holds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from weightsmith.graph import order as order_module
from weightsmith.graph.equal_magnitudes import rank_key, ranks_of
from weightsmith.graph.order import (
    ALL_INDICES,
    CollectedParts,
    Selection,
    SummedHistograms,
    bounded,
    gate_for,
    key_to_magnitude,
    local_threshold,
)
from weightsmith.graph.passes import (
    HISTOGRAM_BINS,
    Collect,
    CollectPart,
    Equal,
    Histogram,
    HistogramPart,
    ShareOf,
    ThresholdPoint,
)

POPULATION = 1_000_000
LAST_KEY = (1 << 31) - 1


def keys_of(values: np.ndarray) -> np.ndarray:
    return np.abs(values).astype(np.float32).view(np.uint32).astype(np.uint64)


def laplace(seed: int, size: int) -> np.ndarray:
    return keys_of(np.random.default_rng(seed).laplace(size=size))


def histogram(keys: np.ndarray, asked: Histogram) -> HistogramPart:
    bins = (keys.astype(np.int64) - asked.low) >> asked.shift
    inside = bins[(bins >= 0) & (bins < HISTOGRAM_BINS)]
    counts = np.bincount(inside, minlength=HISTOGRAM_BINS).astype(np.uint64)
    return HistogramPart(counts, int((bins >= HISTOGRAM_BINS).sum()))


def collected(keys: np.ndarray, asked: Collect, start: int = 0) -> CollectPart:
    at = np.flatnonzero((keys >= asked.low) & (keys <= asked.high))
    kept = at[: asked.limit]
    above = int((keys > asked.high).sum())
    return CollectPart(keys[kept], kept + start, len(at), above, int(np.count_nonzero(keys)))


def sampled(selection: Selection, sample: np.ndarray) -> int:
    """Answer the requests for a sample; how many there were."""
    count = 0
    while (asked := selection.sample_request) is not None:
        selection.absorb_sample(asked, [histogram(sample, asked)])
        count += 1
    return count


def bracket(sample: np.ndarray, k: int, low: int, shift: int) -> tuple[int, int]:
    """By sorting: the bins of the elements 8 standard deviations (and 8 elements) to both sides of the k-th largest."""
    falling = np.sort(sample)[::-1].astype(np.int64)
    share = k / POPULATION
    wanted = share * len(sample)
    spread = 8.0 * math.sqrt(share * (1.0 - share) * len(sample)) + 8.0
    highest = lowest = low
    if wanted > spread:
        bin_of_upper = (falling[math.ceil(wanted - spread) - 1] - low) >> shift
        highest = low + (int(bin_of_upper + 1) << shift) - 1
    else:
        highest = LAST_KEY
    if wanted + spread <= len(sample):
        bin_of_lower = (falling[math.ceil(wanted + spread) - 1] - low) >> shift
        lowest = low + (int(bin_of_lower) << shift)
    return max(1, lowest), highest


@pytest.mark.parametrize("k", [5, 100, 5_000, 200_000, 900_000, 999_999])
def test_the_first_bracket_lies_eight_standard_deviations_around_the_rank_in_the_sample(k):
    sample = laplace(1, 20_000)
    selection = Selection(k, POPULATION, 31)
    assert selection.sample_request == Histogram(0, 15)
    assert sampled(selection, sample) == 1
    low, high = bracket(sample, k, 0, 15)
    assert selection.request() == Collect(low, high, 1 << 16)


@pytest.mark.parametrize("k", [100, 5_000, 200_000, 900_000])
def test_a_sample_like_the_population_makes_one_round_enough(k):
    keys = laplace(2, POPULATION)
    selection = Selection(k, POPULATION, 31)
    sampled(selection, keys[::50])
    asked = selection.request()
    assert isinstance(asked, Collect)
    tiles = [keys[s : s + 50_000] for s in range(0, POPULATION, 50_000)]
    selection.absorb(asked, [collected(t, asked, 50_000 * i) for i, t in enumerate(tiles)])
    at = np.lexsort((np.arange(POPULATION), -keys.astype(np.int64)))[k - 1]
    assert selection.result == ThresholdPoint(
        int(keys[at]), int(at), float(keys[at : at + 1].astype(np.uint32).view(np.float32)[0])
    )


def test_small_populations_are_not_sampled_and_larger_ones_once_or_twice(monkeypatch):
    assert Selection(5, 1 << 18, 31).sample_request is None
    assert Selection(5, (1 << 18) + 1, 31).sample_request == Histogram(0, 15)
    assert Selection(5, (1 << 18) + 1, 63).sample_request == Histogram(0, 47)
    assert Selection(0, 1 << 20, 31).sample_request is None
    assert sampled(Selection(5_000, POPULATION, 31), laplace(3, 9_000)) == 1
    monkeypatch.setattr(order_module, "_LARGE", POPULATION - 1)
    assert sampled(Selection(5_000, POPULATION, 31), laplace(3, 9_000)) == 2


def test_the_second_sample_looks_inside_the_first_bracket(monkeypatch):
    monkeypatch.setattr(order_module, "_LARGE", POPULATION - 1)
    sample, k = laplace(4, 50_000), 100_000
    selection = Selection(k, POPULATION, 31)
    first = selection.sample_request
    assert first is not None
    selection.absorb_sample(first, [histogram(sample, first)])
    low, high = bracket(sample, k, 0, 15)
    second = selection.sample_request
    assert second == Histogram(low, max(0, (high - low).bit_length() - 16))
    selection.absorb_sample(second, [histogram(sample, second)])
    assert selection.sample_request is None
    narrow = bracket(sample, k, low, second.shift)
    assert selection.request() == Collect(narrow[0], min(high, narrow[1]), 1 << 16)


@pytest.mark.parametrize("k", [20_000, 100_000])
@pytest.mark.parametrize("twice", [False, True])
def test_a_bracket_that_is_expected_to_hold_too_much_is_binned(monkeypatch, k, twice):
    """The expectation is the bracket's share of the sample, zeros apart; three quarters of what may be held count."""
    monkeypatch.setattr(order_module, "_LARGE", POPULATION - 1)
    sample = laplace(5, 50_000)
    sample[:10_000] = 0
    selection = Selection(k, POPULATION, 31)
    for _ in range(1 + twice):
        asked = selection.sample_request
        assert asked is not None
        selection.absorb_sample(asked, [histogram(sample, asked)])
    guess = selection.request()
    assert isinstance(guess, Collect)
    share = float(((sample >= guess.low) & (sample <= guess.high)).mean())
    most = share * POPULATION / 0.75
    monkeypatch.setattr(order_module, "_TOTAL_LIMIT", most * 1.001)
    assert selection.request() == guess
    monkeypatch.setattr(order_module, "_TOTAL_LIMIT", most * 0.999)
    shift = max(0, (guess.high - guess.low).bit_length() - 16)
    assert selection.request() == Histogram(guess.low, shift)


def test_a_share_of_what_is_not_zero_is_guessed_from_the_zeros_of_the_sample():
    sample = laplace(6, 20_000)
    sample[:5_000] = 0
    selection = Selection(ShareOf(0.1), POPULATION, 31)
    sampled(selection, sample)
    assert selection.k == 75_000
    low, high = bracket(sample, 75_000, 0, 15)
    assert selection.request() == Collect(low, high, 1 << 16)


def test_a_sample_of_nothing_guesses_nothing():
    selection = Selection(5, POPULATION, 31)
    assert sampled(selection, np.empty(0, np.uint64)) == 1
    assert selection.request() == Histogram(1, 15)


def test_without_a_guess_what_fits_is_collected_and_what_does_not_is_binned():
    assert Selection(5, 100, 31, limit=100).request() == Collect(1, LAST_KEY, 100)
    assert Selection(5, 101, 31, limit=100).request() == Histogram(1, 15)
    assert Selection(5, 101, 63, limit=100).request() == Histogram(1, 47)


def misled(k: int, sample: np.ndarray, keys: np.ndarray) -> tuple[Selection, Collect]:
    """A selection whose guess has been answered, and the guess."""
    selection = Selection(k, POPULATION, 31)
    sampled(selection, sample)
    asked = selection.request()
    assert isinstance(asked, Collect)
    selection.absorb(asked, [collected(keys, asked)])
    return selection, asked


def test_a_guess_that_was_too_low_leaves_the_keys_above_it():
    keys = laplace(7, POPULATION)
    selection, guess = misled(1_000, np.sort(keys)[: POPULATION // 2], keys)
    above = int((keys > guess.high).sum())
    assert (selection.low, selection.high, selection.above) == (guess.high + 1, LAST_KEY, 0)
    assert above > 1 << 16
    shift = (LAST_KEY - guess.high - 1).bit_length() - 16
    assert selection.request() == Histogram(guess.high + 1, shift)


def test_a_guess_that_was_too_high_leaves_the_keys_below_it():
    keys = laplace(8, POPULATION)
    selection, guess = misled(800_000, np.sort(keys)[-POPULATION // 4 :], keys)
    assert (selection.low, selection.high) == (1, guess.low - 1)
    assert selection.above == int((keys >= guess.low).sum())
    assert selection.request() == Histogram(1, (guess.low - 2).bit_length() - 16)


def test_bins_leave_the_one_that_holds_the_rank():
    keys = laplace(9, 300_000)
    selection = Selection(70_000, len(keys), 31, limit=10)
    asked = selection.request()
    assert asked == Histogram(1, 15)
    selection.absorb(asked, [histogram(keys[:100_000], asked), histogram(keys[100_000:], asked)])
    key = int(np.sort(keys)[-70_000])
    start = 1 + ((key - 1) >> 15 << 15)
    assert (selection.low, selection.high) == (start, start + (1 << 15) - 1)
    assert selection.above == int((keys > selection.high).sum())
    again = selection.request()
    assert again == Histogram(start, 0)
    selection.absorb(again, [histogram(keys, again)])
    assert (selection.low, selection.high) == (key, key)
    last = selection.request()
    assert last == Collect(key, key, 10)
    selection.absorb(last, [collected(keys, last)])
    assert selection.result is not None
    assert selection.result.key == key


def test_bins_that_begin_above_the_rank_or_end_below_it_are_left():
    keys = np.arange(1, 200_001, dtype=np.uint64)
    selection = Selection(150_000, len(keys), 31, limit=10)
    selection.absorb(high := Histogram(100_001, 1), [histogram(keys, high)])
    assert (selection.low, selection.high, selection.above) == (1, 100_000, 100_000)
    selection = Selection(10, len(keys), 31, limit=10)
    selection.absorb(low := Histogram(1, 0), [histogram(keys, low)])
    assert (selection.low, selection.above) == (HISTOGRAM_BINS + 1, 0)


def test_more_than_all_that_is_not_zero_cuts_at_zero():
    keys = np.array([0, 0, 5, 9], dtype=np.uint64)
    selection = Selection(3, len(keys), 31)
    asked = selection.request()
    assert isinstance(asked, Collect)
    selection.absorb(asked, [collected(keys, asked)])
    assert selection.result == ThresholdPoint(0, -1, 0.0)


def test_none_are_wanted_before_anything_is_read():
    for k in (0, -3):
        for bits in (31, 63):
            assert Selection(k, 10, bits).result == ThresholdPoint((1 << bits) - 1, -1, math.inf)
    assert Selection(1, 10, 31).result is None


def test_lists_that_were_dropped_are_narrowed_by_bins_though_few_were_inside():
    keys = np.arange(1, 51, dtype=np.uint64)
    selection = Selection(20, 50, 31, limit=100)
    asked = selection.request()
    assert isinstance(asked, Collect)
    gate = CollectedParts(total_limit=10)
    selection.absorb(asked, [gate.admit(collected(keys, asked))])
    assert selection.result is None
    assert isinstance(selection.request(), Histogram)


def test_ties_inside_a_list_end_the_selection_and_others_ask_one_tile():
    key = 7
    tiles = [np.full(20, key, np.uint64)] * 3
    asked = Collect(key, key, 5)
    parts = [collected(t, asked, 20 * i) for i, t in enumerate(tiles)]
    for wanted, last in [(3, 2), (5, 4), (20, None), (23, 22), (25, 24), (26, None)]:
        selection = Selection(wanted, 60, 31, limit=5)
        selection.low = selection.high = key
        selection.absorb(asked, parts)
        if last is not None:
            assert selection.result == ThresholdPoint(key, last, key_to_magnitude(key, 31))
            continue
        assert selection.result is None
        tile = (wanted - 1) // 20
        again = selection.request()
        assert again == Collect(key, key, 1 << 62, only_part=tile)
        selection.absorb(again, [collected(tiles[tile], again, 20 * tile)])
        assert selection.result == ThresholdPoint(key, wanted - 1, key_to_magnitude(key, 31))


def grid(seed: int) -> np.ndarray:
    """Magnitudes of which many thousands are equal."""
    numbers = np.random.default_rng(seed).laplace(size=POPULATION).astype(np.float32)
    return keys_of(np.round(numbers * 4) / 4)


def equal(keys: np.ndarray, ranks: np.ndarray, asked: Equal) -> CollectPart:
    tied = keys == asked.key
    at = np.flatnonzero(tied & (ranks >= asked.low) & (ranks <= asked.high))
    lower, larger = int((tied & (ranks < asked.low)).sum()), int((keys > asked.key).sum())
    return CollectPart(ranks[at].astype(np.uint64), at, len(at), lower, 0, larger, int(tied.sum()))


def rounds(selection: Selection, keys: np.ndarray, ranks: np.ndarray) -> list[type]:
    """Answer a selection to its end; the kinds of what it asked."""
    kinds: list[type] = []
    while selection.result is None:
        asked = selection.request()
        kinds.append(type(asked))
        if isinstance(asked, Histogram):
            selection.absorb(asked, [histogram(keys, asked)])
            continue
        part = equal(keys, ranks, asked) if isinstance(asked, Equal) else collected(keys, asked)
        selection.absorb(asked, [CollectedParts().admit(part)])
        assert len(kinds) < 20
    return kinds


def taken(threshold: ThresholdPoint, keys: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    """What a cut selects."""
    equals = keys == threshold.key
    if threshold.last_rank is None:
        return (keys > threshold.key) | (equals & (np.arange(POPULATION) <= threshold.last_index))
    return (keys > threshold.key) | (equals & (ranks <= threshold.last_rank))


def largest_by_rank(k: int, keys: np.ndarray, ranks: np.ndarray) -> np.ndarray:
    mask = np.zeros(POPULATION, bool)
    mask[np.lexsort((ranks, -keys.astype(np.int64)))[:k]] = True
    return mask


RANKS = ranks_of(rank_key("w"), np.arange(POPULATION))


def inside_of(magnitude: float, keys: np.ndarray) -> int:
    """A number of largest keys that takes a third of those of a magnitude."""
    (key,) = keys_of(np.array([magnitude]))
    return int((keys > key).sum()) + int((keys == key).sum()) // 3


@pytest.mark.parametrize("magnitude", [0.25, 1.0, 2.5])
def test_where_the_guess_is_one_key_that_many_have_one_round_is_enough(monkeypatch, magnitude):
    """The ranks around the wanted one are asked for at once, and not in a round of their own."""
    monkeypatch.setattr(order_module, "_TOTAL_LIMIT", 8_000)
    keys = grid(10)
    k = inside_of(magnitude, keys)
    selection = Selection(k, POPULATION, 31, 1_000, lambda at: RANKS[at])
    sampled(selection, keys[::4])
    assert rounds(selection, keys, RANKS) == [Equal]
    found = taken(selection.result, keys, RANKS)
    np.testing.assert_array_equal(found, largest_by_rank(k, keys, RANKS))


def test_no_more_ranks_are_asked_for_than_half_of_what_may_be_held(monkeypatch):
    keys = grid(11)
    for most in (1_000, 4_000):
        monkeypatch.setattr(order_module, "_TOTAL_LIMIT", most)
        selection = Selection(inside_of(1.0, keys), POPULATION, 31, 500, lambda at: RANKS[at])
        sampled(selection, keys[::4])
        found = equal(keys, RANKS, selection.request()).inside
        assert 0.4 * most < found < 0.6 * most


def test_samples_look_closer_while_a_bracket_holds_too_much(monkeypatch):
    """Bins of a wide bracket hold many keys each, of which one may be what most have."""
    keys = grid(14)
    k = int((keys > keys_of(np.array([0.25]))[0]).sum()) + 300
    counts = []
    for most in (1 << 20, 4_000):
        monkeypatch.setattr(order_module, "_TOTAL_LIMIT", most)
        counts.append(sampled(Selection(k, POPULATION, 31), keys[::4]))
    assert counts[0] == 1 < counts[1]


@pytest.mark.parametrize("sample_from", ["largest", "smallest", "near"])
def test_a_misleading_guess_among_equals_costs_rounds_and_never_the_right_answer(
    monkeypatch, sample_from
):
    """Wrong about the key in either direction, or about the rank."""
    monkeypatch.setattr(order_module, "_TOTAL_LIMIT", 8_000)
    keys = grid(12)
    k = inside_of(1.0, keys)
    falling = np.sort(keys)[::-1]
    sample = {
        "largest": falling[:500_000],
        "smallest": falling[300_000:],
        "near": falling[10_000::4],
    }[sample_from]
    selection = Selection(k, POPULATION, 31, 1_000, lambda at: RANKS[at])
    sampled(selection, sample)
    assert isinstance(selection.request(), Equal)
    assert len(rounds(selection, keys, RANKS)) > 1
    found = taken(selection.result, keys, RANKS)
    np.testing.assert_array_equal(found, largest_by_rank(k, keys, RANKS))


def test_bins_that_leave_one_key_are_followed_by_its_ranks():
    """Its elements have been counted, so that nothing is to be collected first."""
    keys = grid(13)
    selection = Selection(200_000, POPULATION, 31, 1_000, lambda at: RANKS[at])
    assert rounds(selection, keys, RANKS) == [Histogram, Histogram, Equal]
    found = taken(selection.result, keys, RANKS)
    np.testing.assert_array_equal(found, largest_by_rank(200_000, keys, RANKS))


def test_lists_are_kept_up_to_a_total_and_counts_always():
    gate = CollectedParts(total_limit=5)
    keys = np.arange(3, dtype=np.uint64)
    part = CollectPart(keys, keys.astype(np.int64), 3, 4, 5)
    assert gate.admit(part) is part
    dropped = gate.admit(part)
    assert (len(dropped.keys), len(dropped.indices)) == (0, 0)
    assert (dropped.keys.dtype, dropped.indices.dtype) == (np.uint64, np.int64)
    assert (dropped.inside, dropped.above, dropped.nonzero) == (3, 4, 5)
    exact = CollectedParts(total_limit=6)
    assert exact.admit(part) is part
    assert exact.admit(part) is part
    assert len(exact.admit(part).keys) == 0


def test_histograms_are_added_up_as_they_come():
    gate = SummedHistograms()
    for first, above in [(1, 2), (10, 20)]:
        counts = np.zeros(HISTOGRAM_BINS, np.uint64)
        counts[3] = first
        gate.admit(HistogramPart(counts, above))
    assert int(gate.total.counts[3]) == int(gate.total.counts.sum()) == 11
    assert gate.total.above == 22


def test_only_lists_that_can_be_dropped_pass_a_gate():
    assert isinstance(gate_for(Histogram(0, 1)), SummedHistograms)
    assert isinstance(gate_for(Collect(1, 2, 3)), CollectedParts)
    assert isinstance(gate_for(Equal(1, 2, 3, 4)), CollectedParts)
    assert gate_for(Collect(1, 2, 3, only_part=0)) is None
    assert gate_for(None) is None
    assert not bounded(Histogram(0, 1))


def test_a_key_is_the_bits_of_a_magnitude():
    assert key_to_magnitude(int(np.float32(1.5).view(np.uint32)), 31) == 1.5
    assert key_to_magnitude(int(np.float64(1e300).view(np.uint64)), 63) == 1e300


@pytest.mark.parametrize(
    ("offset", "numel", "last"),
    [
        (0, 100, ALL_INDICES),
        (0, 120, ALL_INDICES),
        (0, 121, 120),
        (100, 50, 20),
        (120, 9, 0),
        (121, 9, -1),
        (500, 9, -1),
    ],
)
def test_a_cut_of_the_model_as_a_tensor_sees_it(offset, numel, last):
    threshold = ThresholdPoint(7, 120, 1.0, last_rank=5)
    assert local_threshold(threshold, offset, numel, rank_key=3) == ThresholdPoint(
        7, last, 1.0, 5, 3
    )
