"""Sums are float64, in one order for every tile, level and thread; order statistics are exact."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from weightsmith.graph import graph
from weightsmith.graph.backends import native
from weightsmith.graph.graph import source
from weightsmith.graph.passes import Collect, Equal, Histogram, PassSpec
from weightsmith.tensors.digest_pieces import piece_elements
from weightsmith.tensors.dtypes import DType

DELTA = source(0) - source(1)


def sums(shape: tuple[int, ...], dtype: DType) -> PassSpec:
    reductions = [graph.total(DELTA), graph.dot(DELTA, source(1)), graph.peak(DELTA)]
    reductions.append(graph.total(DELTA > 0.0))
    return PassSpec(shape, (dtype, dtype), reductions=tuple((r, None) for r in reductions))


@pytest.mark.parametrize("dtype", [DType.BFLOAT16, DType.FLOAT32, DType.FLOAT64], ids=str)
@pytest.mark.parametrize("count", [1, 31, 32, 33, 1000, 2**18, 2**18 + 77])
def test_sums_equal_exact_sums_to_float64_rounding(
    backend: Any, tools: Any, dtype: DType, count: int
) -> None:
    x, y = (tools.encode(tools.values(i, count, 0), dtype) for i in (3, 4))
    total, product, peak, positive = tools.run(
        backend, sums((count,), dtype), [x, y]
    ).result.partials
    work = np.float64 if dtype is DType.FLOAT64 else np.float32
    a, b = (decoded(v, dtype).astype(work) for v in (x, y))
    delta = (a - b).astype(np.float64)
    assert len(total) == -(-count // 2**18)
    scale = math.fsum(abs(delta))
    assert math.fsum(total) == pytest.approx(math.fsum(delta), abs=1e-13 * scale)
    products = delta * b.astype(np.float64)
    assert math.fsum(product) == pytest.approx(
        math.fsum(products), abs=1e-13 * math.fsum(abs(products))
    )
    assert max(peak) == delta.max()
    assert sum(positive) == np.count_nonzero(delta > 0)


def decoded(buffer: memoryview, dtype: DType) -> np.ndarray:
    if dtype is DType.BFLOAT16:
        return (np.frombuffer(buffer, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(buffer, dtype.value)


@pytest.mark.parametrize("shape", [(900000,), (270, 3000), (3, 300001), (40, 7, 2500)])
def test_partials_do_not_depend_on_tiles_or_instruction_set(
    tools: Any, shape: tuple[int, ...]
) -> None:
    count = math.prod(shape)
    x, y = (tools.encode(tools.values(i, count, 0), DType.BFLOAT16) for i in (5, 6))
    spec = sums(shape, DType.BFLOAT16)
    piece = piece_elements(shape)
    found = []
    for level in range(native.load().level + 1):
        for pieces in (1, 2, 1000):
            parts: list[list[float]] = [[], [], [], []]
            for start in range(0, count, piece * pieces):
                here = slice(2 * start, 2 * min(count, start + piece * pieces))
                result = tools.run(native.load(level), spec, [x[here], y[here]], start).result
                for whole, part in zip(parts, result.partials, strict=True):
                    whole.extend(part)
            found.append(parts)
    assert all(parts == found[0] for parts in found)
    assert len(found[0][0]) == -(-count // piece)


def test_nan_wins_in_a_peak_wherever_it_stands(backend: Any, tools: Any) -> None:
    for at in (0, 5, 31, 32, 999):
        values = np.arange(1000.0)
        values[at] = math.nan
        spec = PassSpec((1000,), (DType.FLOAT32,), reductions=((graph.peak(source(0)), None),))
        (peak,) = tools.run(backend, spec, [tools.encode(values, DType.FLOAT32)]).result.partials
        assert math.isnan(peak[0])


def test_an_empty_tensor_has_no_partials(backend: Any) -> None:
    threshold = graph.largest(DELTA, 1)
    spec = sums((3, 0), DType.FLOAT16)
    spec = PassSpec(
        (3, 0),
        spec.source_dtypes,
        ((DELTA, DType.FLOAT16),),
        (*spec.reductions, (threshold, Histogram(0, 15)), (threshold, Collect(0, 5, 10))),
    )
    result = backend.compile(spec).run([memoryview(b""), memoryview(b"")], 0, 0, [memoryview(b"")])
    assert [len(p) for p in result.partials[:4]] == [0, 0, 0, 0]
    assert result.partials[4].counts.sum() == 0
    assert result.partials[5].inside == len(result.partials[5].keys) == 0
    assert result.nonfinite_outputs == [(0, -1)]


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 99),
    double=st.booleans(),
    low=st.integers(0, 2**31 - 1),
    width=st.integers(0, 2**26),
    limit=st.sampled_from([1, 7, 100, 1 << 62]),
)
def test_histogram_and_collect_equal_torch(
    backend: Any,
    reference: Any,
    tools: Any,
    seed: int,
    double: bool,
    low: int,
    width: int,
    limit: int,
) -> None:
    dtype = DType.FLOAT64 if double else DType.BFLOAT16
    x, y = (tools.encode(tools.values(seed + i, 3000), dtype) for i in range(2))
    low <<= 32 if double else 0
    width <<= 32 if double else 0
    threshold = graph.largest(abs(DELTA), 3)
    for request in (
        Histogram(low, max(0, width.bit_length() - 16)),
        Collect(low, low + width, limit),
        Histogram(0, 47 if double else 15),
    ):
        if double and low + width >= 2**63:
            continue  # the reference has no room for such a bound
        spec = PassSpec((3000,), (dtype, dtype), reductions=((threshold, request),))
        ours, theirs = (
            tools.run(b, spec, [x, y], start=0).result.partials[0] for b in (backend, reference)
        )
        assert ours.above == theirs.above
        if isinstance(request, Histogram):
            assert (ours.counts == theirs.counts).all()
        else:
            assert ours.inside == theirs.inside
            assert ours.nonzero == theirs.nonzero
            assert ours.keys.tolist() == theirs.keys.tolist()
            assert ours.indices.tolist() == theirs.indices.tolist()


def test_a_bracket_above_every_key_is_empty(backend: Any, tools: Any) -> None:
    for dtype, bits in ((DType.FLOAT32, 31), (DType.FLOAT64, 63)):
        threshold = graph.largest(source(0), 3)
        buffer = tools.encode([np.inf, 1.0, -np.inf], dtype)
        for request in (Histogram(1 << bits, 0), Collect(1 << bits, (1 << bits) + 5, 10)):
            spec = PassSpec((3,), (dtype,), reductions=((threshold, request),))
            (part,) = tools.run(backend, spec, [buffer]).result.partials
            assert part.above == 0
            assert (part.counts.sum() if isinstance(request, Histogram) else part.inside) == 0


def test_collected_indices_are_flat_indices_of_the_tensor(backend: Any, tools: Any) -> None:
    threshold = graph.largest(source(0), 3)
    spec = PassSpec(
        (10**6,), (DType.FLOAT32,), reductions=((threshold, Collect(0x40000000, 0x40000000, 10)),)
    )
    values = np.ones(2000)
    values[[3, 1777]] = [-2.0, 2.0]
    (part,) = tools.run(
        backend, spec, [tools.encode(values, DType.FLOAT32)], start=2**18
    ).result.partials
    assert part.indices.tolist() == [2**18 + 3, 2**18 + 1777]
    assert part.keys.tolist() == [0x40000000] * 2


def test_reductions_that_ask_for_the_same_number_are_measured_once(
    backend: Any, tools: Any
) -> None:
    """As many numbers come back as were asked for, whichever of them are one and the same, beside an output."""
    count = 5000
    data = [tools.encode(tools.values(i, count, 0), DType.BFLOAT16) for i in (5, 6)]

    def asked() -> list[tuple[Any, Any]]:
        delta = source(0) - source(1)
        return [
            (graph.peak(delta), None),
            (graph.largest(delta, 7), Histogram(0, 15)),
            (graph.dot(delta, delta), None),
            (graph.largest(delta, 9), Collect(1 << 29, (1 << 31) - 1, 100)),
        ]

    def parts(reductions: list[tuple[Any, Any]]) -> list[Any]:
        spec = PassSpec(
            (count,),
            (DType.BFLOAT16,) * 2,
            ((source(0) + source(1), DType.BFLOAT16),),
            tuple(reductions),
        )
        return list(tools.run(backend, spec, data).result.partials)

    alone, twice = parts(asked()), parts([*asked(), *reversed(asked())])
    compiled = backend.compile(
        PassSpec((count,), (DType.BFLOAT16,) * 2, reductions=(*asked(), *asked()))
    )
    assert len(compiled._listing.sinks) == 4
    for one, first, second in zip(alone, twice[:4], reversed(twice[4:]), strict=True):
        for found in (first, second):
            if isinstance(one, np.ndarray):
                assert np.array_equal(found, one)
            elif hasattr(one, "counts"):
                assert np.array_equal(found.counts, one.counts)
            else:
                assert np.array_equal(found.keys, one.keys)
                assert (found.inside, found.above) == (one.inside, one.above)


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**32 - 1),
    double=st.booleans(),
    steps=st.sampled_from([1, 2, 9, 400]),
    bracket=st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0)),
    limit=st.sampled_from([1, 7, 100, 1 << 16]),
)
def test_equal_magnitudes_are_collected_by_rank_as_torch_does(
    backend: Any,
    reference: Any,
    tools: Any,
    seed: int,
    double: bool,
    steps: int,
    bracket: tuple[float, float],
    limit: int,
) -> None:
    """However many elements of a block are equal, and wherever the bracket of ranks ends."""
    dtype = DType.FLOAT64 if double else DType.FLOAT32
    rng = np.random.default_rng(seed)
    x = (rng.integers(-steps, steps + 1, 3000) / 8).astype("<f8" if double else "<f4")
    key = int(np.abs(x[:1]).view("<i8" if double else "<i4")[0])
    low, high = (min(int(share * 2**63), 2**63 - 1) for share in sorted(bracket))
    request = Equal(key, low, high, limit, rank_key=seed - 2**31)
    threshold = graph.largest(abs(graph.source(0)), 3)
    spec = PassSpec((3000,), (dtype,), reductions=((threshold, request),))
    ours, theirs = (
        tools.run(b, spec, [x.view(np.uint8)], start=0).result.partials[0]
        for b in (backend, reference)
    )
    for part in (ours, theirs):
        assert part.larger == int((np.abs(x) > np.abs(x[0])).sum())
        assert part.equal == int((np.abs(x) == np.abs(x[0])).sum())
    assert (ours.inside, ours.above) == (theirs.inside, theirs.above)
    assert ours.keys.tolist() == theirs.keys.tolist()
    assert ours.indices.tolist() == theirs.indices.tolist()
