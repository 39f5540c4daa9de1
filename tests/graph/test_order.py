"""Exact selection of the k largest magnitudes from streamed rounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weightsmith.graph import order as order_module
from weightsmith.graph.order import CollectedParts, Selection, bounded, local_threshold
from weightsmith.graph.passes import (
    HISTOGRAM_BINS,
    Collect,
    CollectPart,
    Histogram,
    HistogramPart,
    ShareOf,
    ThresholdPoint,
)
from weightsmith.graph.shares import floor_of_share


def answer(keys: np.ndarray, asked: Histogram | Collect, start: int) -> HistogramPart | CollectPart:
    """What a tile with these keys answers, written from the definitions of the requests."""
    if isinstance(asked, Histogram):
        bins = (keys.astype(np.int64) - asked.low) >> asked.shift
        inside = bins[(bins >= 0) & (bins < HISTOGRAM_BINS)]
        counts = np.bincount(inside, minlength=HISTOGRAM_BINS).astype(np.uint64)
        return HistogramPart(counts, int((bins >= HISTOGRAM_BINS).sum()))
    at = np.flatnonzero((keys >= asked.low) & (keys <= asked.high))
    kept = at[: asked.limit]
    above, nonzero = int((keys > asked.high).sum()), int(np.count_nonzero(keys))
    return CollectPart(keys[kept], kept + start, len(at), above, nonzero)


def select(
    values: np.ndarray, k: int | ShareOf, tile: int, limit: int, sample: np.ndarray | None = None
) -> np.ndarray:
    """Run a selection over tiles and return the mask of selected elements."""
    keys = np.abs(values).astype(np.float32).view(np.uint32).astype(np.uint64)
    selection = Selection(k, len(keys), 31, limit=limit)
    while sample is not None and (asked := selection.sample_request) is not None:
        part = answer(keys[sample], asked, 0)
        assert isinstance(part, HistogramPart)
        selection.absorb_sample(asked, [part])
    for _ in range(20):
        if selection.result is not None:
            break
        asked = selection.request()
        starts = list(range(0, len(keys), tile))
        if isinstance(asked, Collect) and asked.only_part is not None:
            starts = [starts[asked.only_part]]
        gate = CollectedParts(total_limit=4 * limit)
        parts = [answer(keys[s : s + tile], asked, s) for s in starts]
        selection.absorb(
            asked,
            [gate.admit(p) if isinstance(p, CollectPart) and bounded(asked) else p for p in parts],
        )
    threshold = selection.result
    assert threshold is not None, "the selection did not end"
    return (keys > threshold.key) | (
        (keys == threshold.key) & (np.arange(len(keys)) <= threshold.last_index)
    )


def expected(values: np.ndarray, k: int) -> np.ndarray:
    """The definition: order by magnitude, then by index; take k; never a zero."""
    order = np.lexsort((np.arange(len(values)), -np.abs(values)))
    mask = np.zeros(len(values), bool)
    mask[order[: max(k, 0)]] = True
    return mask & (values != 0)


numbers = st.one_of(
    st.lists(st.floats(-4, 4, width=32), max_size=200),
    st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, 1e-40, -1e-45]), max_size=200),
)


@given(numbers, st.integers(-1, 220), st.integers(1, 64), st.integers(1, 40))
@settings(max_examples=300, deadline=None)
def test_selects_exactly_the_k_largest_with_ties_to_the_lower_index(
    raw: list[float], k: int, tile: int, limit: int
) -> None:
    """Whatever the values, tiles and limits, the mask is the one that a sort would give."""
    values = np.array(raw, np.float32)
    np.testing.assert_array_equal(select(values, k, tile, limit), expected(values, k))


@pytest.mark.parametrize("sample_from", ["spread", "largest", "smallest", "zeros"])
@pytest.mark.parametrize("k", [1, 300, 29_999, 60_000, 299_999])
def test_a_misleading_sample_costs_a_round_but_never_the_right_answer(
    sample_from: str, k: int
) -> None:
    """The guess from a sample is verified by exact counts."""
    rng = np.random.default_rng(3)
    values = rng.laplace(size=300_000).astype(np.float32)
    values[rng.random(values.size) < 0.3] = 0
    order = np.argsort(np.abs(values))
    sample = {
        "spread": np.arange(0, values.size, 37),
        "largest": order[-5000:],
        "smallest": order[len(order) // 3 : len(order) // 3 + 5000],
        "zeros": np.flatnonzero(values == 0)[:5000],
    }[sample_from]
    mask = select(values, k, 65_536, 1 << 16, sample)
    np.testing.assert_array_equal(mask, expected(values, k))


@given(numbers, st.floats(0.0, 1.0), st.integers(1, 64), st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_a_share_of_what_is_not_zero_is_counted_in_the_rounds_that_select(
    raw: list[float], share: float, tile: int, limit: int
) -> None:
    """No pass counts first, and the mask is the one of the k that such a pass would have given."""
    values = np.array(raw, np.float32)
    k = floor_of_share(share, np.count_nonzero(values))
    np.testing.assert_array_equal(select(values, ShareOf(share), tile, limit), expected(values, k))


@pytest.mark.parametrize("large", [1 << 17, 1 << 28])
@pytest.mark.parametrize("sample_from", ["spread", "largest", "zeros"])
@pytest.mark.parametrize("share", [0.0, 1e-7, 0.1, 0.6, 1.0])
def test_a_share_of_what_is_not_zero_survives_a_misleading_sample(
    monkeypatch: pytest.MonkeyPatch, share: float, sample_from: str, large: int
) -> None:
    """Also where brackets would hold too many elements, so that bins are asked for."""
    monkeypatch.setattr(order_module, "_LARGE", large)
    monkeypatch.setattr(order_module, "_TOTAL_LIMIT", 1 << 12)
    values = np.random.default_rng(3).laplace(size=300_000).astype(np.float32)
    values[np.random.default_rng(4).random(values.size) < 0.3] = 0
    sample = {
        "spread": np.arange(0, values.size, 37),
        "largest": np.argsort(np.abs(values))[-5000:],
        "zeros": np.flatnonzero(values == 0)[:5000],
    }[sample_from]
    mask = select(values, ShareOf(share), 65_536, 1 << 16, sample)
    np.testing.assert_array_equal(
        mask, expected(values, floor_of_share(share, np.count_nonzero(values)))
    )


def test_massive_ties_are_resolved_by_index_within_bounded_lists() -> None:
    """One value that most elements share overflows every list, and the answer is still exact."""
    values = np.full(500_000, 0.25, np.float32)
    values[::7] = 0.125
    values[::11] = 3.0
    for k in (10, 45_455, 100_000, 400_000):
        np.testing.assert_array_equal(select(values, k, 65_536, 100), expected(values, k))


def test_a_model_wide_cut_splits_at_the_tensor_that_holds_it() -> None:
    """Equal magnitudes go to earlier tensors first."""
    threshold = ThresholdPoint(7, 120, 1.0)
    assert local_threshold(threshold, 0, 100).last_index > 99
    assert local_threshold(threshold, 100, 50).last_index == 20
    assert local_threshold(threshold, 150, 50).last_index == -1


def test_a_rule_gives_the_rank_from_the_number_of_elements():
    import torch

    from weightsmith.graph.backends.torch_memory import evaluate_model
    from weightsmith.graph.graph import Scope, above, largest, source, where
    from weightsmith.graph.model_statistics import ModelStatistic

    def third(population: int) -> int:
        return population // 3

    arrays = {"a": np.array([1.0, -9.0, 3.0]), "b": np.array([8.0, 0.5, -2.0, 7.0, 4.0, 0.1])}
    x = source(0)
    graphs = {
        n: where(above(x, largest(x, third, ModelStatistic("merge", "threshold"))), x, 0.0)
        for n in arrays
    }
    found = evaluate_model(graphs, {n: [torch.from_numpy(a)] for n, a in arrays.items()})
    assert found["a"].tolist() == [0.0, -9.0, 0.0]
    assert found["b"].tolist() == [8.0, 0.0, 0.0, 7.0, 0.0, 0.0]
    alone = where(above(x, largest(x, third)), x, 0.0)
    (kept,) = evaluate_model({"": alone}, {"": [torch.from_numpy(arrays["b"])]}).values()
    assert kept.tolist() == [8.0, 0.0, 0.0, 7.0, 0.0, 0.0]
    assert largest(x, third).magnitude.scope is Scope.TENSOR


@pytest.mark.parametrize("sample_from", ["spread", "largest", "smallest"])
@pytest.mark.parametrize("k", [1, 299, 30_000, 150_000, 299_999])
@pytest.mark.parametrize("grid", [None, 0.25])
def test_a_large_population_is_sampled_twice_and_selected_exactly(
    monkeypatch: pytest.MonkeyPatch, sample_from: str, k: int, grid: float | None
) -> None:
    """Whether its numbers all differ or share a few values, and however the sample misleads."""
    monkeypatch.setattr(order_module, "_LARGE", 1 << 17)
    monkeypatch.setattr(order_module, "_TOTAL_LIMIT", 1 << 12)
    values = np.random.default_rng(4).laplace(size=300_000).astype(np.float32)
    if grid is not None:
        values = np.round(values / grid).astype(np.float32) * np.float32(grid)
    order = np.argsort(np.abs(values))
    sample = {
        "spread": np.arange(0, values.size, 32),
        "largest": order[-9000:],
        "smallest": order[:9000],
    }[sample_from]
    mask = select(values, k, 65_536, 1 << 16, sample)
    np.testing.assert_array_equal(mask, expected(values, k))


def test_zeros_are_not_expected_among_what_a_bracket_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where fewer than k are not zero, lists of next to nothing tell so, and no bins are needed."""
    monkeypatch.setattr(order_module, "_LARGE", 1 << 17)
    monkeypatch.setattr(order_module, "_TOTAL_LIMIT", 1 << 12)
    values = np.random.default_rng(5).laplace(size=300_000).astype(np.float32)
    values[100_000:] = 0.0
    keys = np.abs(values).view(np.uint32).astype(np.uint64)
    selection = Selection(150_000, len(keys), 31)
    asked = selection.sample_request
    assert asked is not None
    part = answer(keys[::32], asked, 0)
    assert isinstance(part, HistogramPart)
    selection.absorb_sample(asked, [part])
    assert selection.sample_request is None
    request = selection.request()
    assert isinstance(request, Collect)
    selection.absorb(request, [answer(keys, request, 0)])
    assert selection.result == ThresholdPoint(0, -1, 0.0)


def test_a_large_population_of_few_values_needs_one_streamed_round(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The second sample tells the one key, of which no lists are needed: then a look inside one tile is all."""
    monkeypatch.setattr(order_module, "_LARGE", 1 << 17)
    # Far more elements have the key than lists may hold.
    monkeypatch.setattr(order_module, "_TOTAL_LIMIT", 1 << 12)
    values = np.repeat(np.array([1.0, 1.001, 1.002, 4.0], np.float32), 100_000)
    keys = values.view(np.uint32).astype(np.uint64)
    selection = Selection(150_000, len(keys), 31)
    while (asked := selection.sample_request) is not None:
        part = answer(keys[::32], asked, 0)
        assert isinstance(part, HistogramPart)
        selection.absorb_sample(asked, [part])
    request = selection.request()
    assert isinstance(request, Collect)
    assert request.low == request.high == int(keys[250_000])
