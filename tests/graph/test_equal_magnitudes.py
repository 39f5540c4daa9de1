"""Which of equal magnitudes a threshold over the whole model takes."""

from __future__ import annotations

import hashlib
import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weightsmith.engine.outputs.storage import Target
from weightsmith.engine.planning.backends import choose_backend
from weightsmith.engine.planning.trace import StatisticMember
from weightsmith.engine.running.job_facts import JobSettings
from weightsmith.engine.running.model_scope import resolve_model_scope
from weightsmith.engine.running.scheduler import Scheduler
from weightsmith.engine.running.tensor_job import TensorJob
from weightsmith.graph import order
from weightsmith.graph.backends import native
from weightsmith.graph.backends.torch_interpreter import tie_ranks
from weightsmith.graph.backends.torch_memory import evaluate_model
from weightsmith.graph.equal_magnitudes import (
    EqualMagnitudes,
    RankSearch,
    lowest,
    model_ranks,
    rank_key,
    ranks_of,
)
from weightsmith.graph.graph import above, largest, source, where
from weightsmith.graph.model_statistics import ModelStatistic
from weightsmith.graph.order import Selection
from weightsmith.graph.passes import CollectPart, Equal, Histogram, HistogramPart
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.memory import MemoryTensor

BACKENDS = ["torch", *(["native"] if native.available() else [])]
MODEL = ModelStatistic("merge", "threshold")


def rank(tensor: str, index: int) -> int:
    """The rule of the documentation in Python's integers."""
    text = b"weightsmith equal magnitudes 1\0" + tensor.encode()
    x = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") + index
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x %= 1 << 64
        x = (x ^ (x >> shift)) * factor
    x %= 1 << 64
    return (x ^ (x >> 31)) >> 1


def chosen(tensors: dict[str, np.ndarray], k: int) -> dict[str, np.ndarray]:
    """Masks of the k largest magnitudes, equal ones by rank, from a sort of Python tuples."""
    everything = sorted(
        (-abs(float(x)), rank(name, i), name, i)
        for name, array in tensors.items()
        for i, x in enumerate(array)
        if x != 0
    )
    masks = {name: np.zeros(len(array), bool) for name, array in tensors.items()}
    for _, _, name, i in everything[:k]:
        masks[name][i] = True
    return masks


def test_ranks_are_those_of_the_documented_formula() -> None:
    for name, index in (("a", 0), ("model.layers.0.w", 12345), ("ä", 2**33 + 7)):
        (found,) = ranks_of(rank_key(name), np.array([index]))
        assert int(found) == rank(name, index)
        assert int(tie_ranks(rank_key(name), torch.tensor([index]))[0]) == rank(name, index)


def test_ranks_of_a_model_are_those_of_its_tensors() -> None:
    ranks = model_ranks([("a", 3), ("empty", 0), ("b", 2)])
    assert ranks(np.arange(5)).tolist() == [
        rank(*at) for at in [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1)]
    ]


@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=60),
    st.lists(st.integers(-3, 3), min_size=1, max_size=60),
    st.integers(0, 130),
)
def test_in_memory_exactly_k_are_taken_and_equal_ones_by_rank(
    first: list[int], second: list[int], k: int
) -> None:
    arrays = {"b": np.array(first, np.float32), "a": np.array(second, np.float32)}
    x = source(0)
    graphs = {n: where(above(x, largest(x, k, MODEL)), 1.0, 0.0) for n in arrays}
    found = evaluate_model(graphs, {n: [torch.from_numpy(a)] for n, a in arrays.items()})
    for name, mask in chosen(arrays, k).items():
        assert found[name].numpy().astype(bool).tolist() == mask.tolist()


def masks(
    arrays: dict[str, np.ndarray],
    k: int,
    backend: str,
    rule: EqualMagnitudes = EqualMagnitudes.HASH,
    tile: int = 1 << 12,
) -> dict[str, np.ndarray]:
    """What the engine's jobs select of the whole model."""
    x = source(0)
    threshold = largest(x, k, MODEL)
    output = where(above(x, threshold), 1.0, 0.0)
    settings = JobSettings(choose_backend(wanted=backend).load(), tile)
    jobs = [
        TensorJob(
            name,
            array.shape,
            (output,),
            [MemoryTensor(name, DType.FLOAT32, array.shape, bytearray(array.tobytes()))],
            settings,
            {threshold: StatisticMember(MODEL, name)},
        )
        for name, array in arrays.items()
    ]
    scheduler = Scheduler(2)
    resolve_model_scope(jobs, scheduler, rule)
    sinks = {job.name: _Floats(job.numel) for job in jobs}
    scheduler.run(job.compute([Target(DType.FLOAT32, sinks[job.name])]) for job in jobs)
    return {name: sink.data.astype(bool) for name, sink in sinks.items()}


class _Floats:
    def __init__(self, size: int) -> None:
        self.data = np.zeros(size, np.float32)

    def write(self, start: int, data: memoryview) -> None:
        """Take float32 elements from `start` on."""
        numbers = np.frombuffer(data, np.float32)
        self.data[start : start + len(numbers)] = numbers


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("limit", [8, order._COLLECT_LIMIT])
def test_streamed_selection_is_that_of_a_sort(
    backend: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With lists of 8 elements the ties are too many to be held and are searched by their ranks."""
    monkeypatch.setattr(order, "_TOTAL_LIMIT", 8 * limit)
    monkeypatch.setattr(order.CollectedParts.__init__, "__defaults__", (8 * limit,))
    monkeypatch.setattr(Selection.__init__, "__defaults__", (limit, None))
    rng = np.random.default_rng(3)
    arrays = {
        n: rng.integers(-4, 5, size).astype(np.float32) for n, size in (("y", 9001), ("x", 700))
    }
    for k in (1, 600, 5000, 9000):
        wanted = chosen(arrays, k)
        for name, mask in masks(arrays, k, backend).items():
            assert np.array_equal(mask, wanted[name])


@pytest.mark.parametrize("backend", BACKENDS)
def test_alike_tensors_keep_alike_shares(backend: str) -> None:
    """In index order the first four of ten would be kept whole and the others lose everything."""
    arrays = {f"layers.{i}": np.ones(4000, np.float32) for i in range(10)}
    kept = [int(mask.sum()) for mask in masks(arrays, 16_000, backend).values()]
    assert sum(kept) == 16_000
    assert max(abs(k - 1600) for k in kept) < 5 * np.sqrt(4000 * 0.4 * 0.6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rule", list(EqualMagnitudes))
def test_only_the_rule_file_depends_on_the_order_of_tensors(
    backend: str, rule: EqualMagnitudes
) -> None:
    arrays = {name: np.ones(50, np.float32) for name in "ba"}
    turned = dict(reversed(arrays.items()))
    one, other = masks(arrays, 60, backend, rule), masks(turned, 60, backend, rule)
    assert all(np.array_equal(one[n], other[n]) for n in arrays) == (
        rule is not EqualMagnitudes.FILE
    )
    counts = {name: int(mask.sum()) for name, mask in one.items()}
    if rule is EqualMagnitudes.INDEX:
        assert counts == {"a": 50, "b": 10}
        assert one["b"][:10].all()
    if rule is EqualMagnitudes.FILE:
        assert counts == {"b": 50, "a": 10}


@given(st.integers(1, 2**20), st.data())
def test_the_search_among_ranks_finds_the_wanted_one(count: int, data: st.DataObject) -> None:
    """Also where ranks are as unlike uniform ones as can be, it only takes more rounds."""
    size = min(count, 300)
    wanted = data.draw(st.integers(1, size))
    ranks = np.sort(
        np.array(data.draw(st.lists(st.integers(0, 2**63 - 1), min_size=size, max_size=size)))
    )
    search = RankSearch(7, wanted, size)
    rounds = 0
    while search.result is None:
        asked = search.request()
        assert isinstance(asked, Equal)
        inside = np.flatnonzero((ranks >= asked.low) & (ranks <= asked.high))
        keys = ranks[inside].astype(np.uint64)
        search.absorb(
            asked, [CollectPart(keys, inside, len(inside), int((ranks < asked.low).sum()), 0)]
        )
        rounds += 1
        assert rounds < 200
    if wanted < size:
        assert search.result == (int(ranks[wanted - 1]), wanted - 1)


def around(count: int, wanted: int, low: int, high: int, sigmas: float = 8.0) -> tuple[int, int]:
    """The bracket by its definition: where `wanted` of `count` uniform numbers in [low, high] is to be expected."""
    share = wanted / count
    half = sigmas * (math.sqrt(count * share * (1.0 - share)) + 1.0) / count
    span = high - low
    ends = (int(span * max(0.0, share - half)), math.ceil(span * min(1.0, share + half)))
    return low + ends[0], min(low + ends[1], high)


def answered(search: RankSearch, ranks: np.ndarray, *, held: bool = True) -> tuple[int, int]:
    """The bracket that a search asks for, answered from sorted ranks."""
    asked = search.request()
    at = np.flatnonzero((ranks >= asked.low) & (ranks <= asked.high))
    keys = ranks[at if held else at[:0]].astype(np.uint64)
    kept = at if held else at[:0]
    search.absorb(asked, [CollectPart(keys, kept, len(at), int((ranks < asked.low).sum()), 0)])
    return asked.low, asked.high


def test_a_bracket_of_ranks_that_missed_leaves_what_lies_on_the_side_of_the_wanted_one() -> None:
    """2000 ranks at the bottom, 4000 a little above the middle, 4000 at the top; the 5000th is wanted."""
    last = 2**63 - 1
    places = [(0.0, 2000), (0.56, 4000), (0.99, 4000)]
    ranks = np.concatenate(
        [int(p * 2**62) * 2 + np.arange(n) * (last // 2**10 // n) for p, n in places]
    )
    search = RankSearch(7, 5000, 10_000)
    low, high = answered(search, ranks)
    assert (low, high) == around(10_000, 5000, 0, last)
    # 2000 are below: the wanted one is the 3000th of the 8000 that lie higher.
    second = answered(search, ranks)
    assert second == around(8000, 3000, high + 1, last)
    # 4000 of those lie below the bracket: it is the 3000th of them.
    assert answered(search, ranks) == around(4000, 3000, high + 1, second[0] - 1)
    while search.result is None:
        answered(search, ranks)
    assert search.result == (int(ranks[4999]), 4999)


@pytest.mark.parametrize("side", ["below", "above"])
def test_a_rank_that_just_lies_outside_a_bracket_is_found(side: str) -> None:
    last = 2**63 - 1
    low, high = around(10_000, 5000, 0, last)
    ends = np.arange(4999), last - np.arange(5000)[::-1]
    just = {"below": [low - 1], "above": [high + 1]}[side]
    ranks = np.concatenate([ends[0], just, ends[1]])
    search = RankSearch(7, 5000, 10_000)
    assert answered(search, ranks) == (low, high)
    for _ in range(20):
        if search.result is None:
            answered(search, ranks)
    assert search.result == (just[0], 4999)


def test_ranks_that_were_too_many_to_be_held_are_looked_for_in_half_as_wide_a_bracket() -> None:
    ranks = np.arange(10_000) * (2**63 // 10_000)
    search = RankSearch(7, 5000, 10_000)
    low, high = answered(search, ranks, held=False)
    assert search.result is None
    inside = int(((ranks >= low) & (ranks <= high)).sum())
    below = int((ranks < low).sum())
    assert answered(search, ranks) == around(inside, 5000 - below, low, high, sigmas=4.0)
    assert search.result == (int(ranks[4999]), 4999)


@pytest.mark.parametrize(("wanted", "is_all"), [(9, False), (10, True), (11, True)])
def test_where_all_of_equal_magnitude_are_wanted_no_rank_is_looked_for(
    wanted: int, is_all: bool
) -> None:
    highest = 2**63 - 1
    assert RankSearch(7, wanted, 10).result == ((highest, highest) if is_all else None)


@pytest.mark.parametrize("wanted", [1, 2, 77_777, 150_000, 299_999])
def test_no_tile_is_asked_for_more_ranks_than_it_has_room_for(wanted: int) -> None:
    """A backend makes room for as many as are asked for, so that all elements of a tile would break the budget."""
    ranks = ranks_of(rank_key("t"), np.arange(300_000))
    search = RankSearch(7, wanted, len(ranks))
    while search.result is None:
        asked = search.request()
        assert asked.limit <= 1 << 16
        inside = np.flatnonzero((ranks >= asked.low) & (ranks <= asked.high))
        at = inside[: asked.limit]
        below = int((ranks < asked.low).sum())
        search.absorb(asked, [CollectPart(ranks[at].astype(np.uint64), at, len(inside), below, 0)])
    at = int(np.argsort(ranks)[wanted - 1])
    assert search.result == (int(ranks[at]), at)


def test_a_selection_by_rank_asks_for_ranks_only_where_ties_are_too_many() -> None:
    keys = np.full(5000, 9, np.uint64)
    selection = Selection(10, 5000, 31, limit=100, ranks=model_ranks([("t", 5000)]))
    asked_kinds = []
    while selection.result is None:
        asked = selection.request()
        asked_kinds.append(type(asked))
        if isinstance(asked, Histogram):
            counts = np.zeros(65536, np.uint64)
            counts[(9 - asked.low) >> asked.shift] = 5000
            selection.absorb(asked, [HistogramPart(counts, 0)])
        elif isinstance(asked, Equal):
            ranks = ranks_of(rank_key("t"), np.arange(5000))
            at = np.flatnonzero((ranks >= asked.low) & (ranks <= asked.high))
            below = int((ranks < asked.low).sum())
            part = CollectPart(ranks[at].astype(np.uint64), at, len(at), below, 0)
            selection.absorb(asked, [part])
        else:
            part = CollectPart(keys[:0], np.empty(0, np.int64), 5000, 0, 5000)
            selection.absorb(asked, [part])
    assert asked_kinds[-1] is Equal
    wanted = sorted(range(5000), key=lambda i: rank("t", i))[9]
    assert (selection.result.last_index, selection.result.last_rank) == (wanted, rank("t", wanted))


def test_a_million_equal_magnitudes_take_little_more_memory_than_their_ranks() -> None:
    size = 1_000_000
    ranks = model_ranks([("a", size // 2), ("b", size)])
    indices = np.arange(size)
    tracemalloc.start()
    found = lowest(size // 3, ranks(indices), indices)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * indices.nbytes
    every = np.concatenate([ranks_of(rank_key(name), np.arange(size // 2)) for name in "ab"])
    at = np.lexsort((indices, every))[size // 3 - 1]
    assert found == (int(every[at]), int(at))
