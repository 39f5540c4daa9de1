"""Row reductions, row arithmetic and row ranks, in blocks of whole rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from weightsmith.errors import UsageError
from weightsmith.graph import graph, scalars
from weightsmith.graph.graph import Scope, source
from weightsmith.graph.passes import PassSpec
from weightsmith.tensors.digest_pieces import piece_elements
from weightsmith.tensors.dtypes import DType

SHAPES = [(5, 1), (300, 7), (64, 64), (3, 1500), (2, 3, 33), (4100,), (), (2, 300000)]
MEAN = graph.total(source(0), Scope.ROW) / 7.0


def ranks_by_sorting(values: np.ndarray) -> np.ndarray:
    order = np.argsort(np.abs(values), axis=-1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(values.shape[-1]) + np.zeros_like(order), axis=-1)
    return ranks


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.FLOAT64], ids=str)
@pytest.mark.parametrize("kind", ["spread", "grid", "mostly zero", "one value", "two values"])
@pytest.mark.parametrize("length", [1, 2, 32, 33, 500, 1023, 1024, 5000])
def test_row_ranks_equal_a_stable_sort(
    backend: Any, tools: Any, dtype: DType, kind: str, length: int
) -> None:
    rng = np.random.default_rng(length)
    values = rng.normal(size=(3, length)) * 10.0 ** rng.integers(-30, 30, (3, length))
    if kind == "grid":
        values = np.round(rng.normal(size=(3, length)) * 8) / 8
    elif kind == "mostly zero":
        values[rng.random((3, length)) < 0.9] = 0.0
    elif kind in ("one value", "two values"):
        values = np.where(rng.random((3, length)) < (0 if kind == "one value" else 0.5), 3.5, -2.0)
    buffer = tools.encode(values, dtype)
    stored = np.frombuffer(buffer, dtype=dtype.value).reshape(3, length)
    spec = PassSpec((3, length), (dtype,), ((graph.row_rank(abs(source(0))), DType.FLOAT64),))
    found = tools.run(backend, spec, [buffer]).output.numpy().reshape(3, length)
    assert (found == ranks_by_sorting(stored)).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [DType.BFLOAT16, DType.FLOAT64], ids=str)
def test_row_arithmetic_equals_the_reference(
    backend: Any, reference: Any, tools: Any, shape: tuple[int, ...], dtype: DType
) -> None:
    a, b = source(0), source(1)
    size = graph.apply(scalars.sqrt, graph.dot(a, a, Scope.ROW))
    share = graph.solve(lambda x, y: (x / (x + y + 1.0), y), [size, graph.peak(b, Scope.ROW)], 2)
    shifted = (
        a * share[0] - b * share[1]
    )  # needs one round of row sums; its own total needs a second
    output = shifted - graph.total(shifted, Scope.ROW) + graph.row_rank(b) * 0.5
    count = int(np.prod(shape))
    rng = np.random.default_rng(1)
    # Eighths, so that sums are exact in any order and both backends see the same row numbers.
    buffers = [tools.encode(rng.integers(-64, 64, count) / 8, dtype) for _ in range(2)]
    spec = PassSpec(shape, (dtype, dtype), ((output, DType.FLOAT32),))
    ours, theirs = (tools.run(x, spec, buffers).output for x in (backend, reference))
    np.testing.assert_allclose(
        ours.numpy(), theirs.numpy(), rtol=1e-5, atol=1e-4 * shape[-1] if shape else 0
    )


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.FLOAT64], ids=str)
def test_row_sums_stand_in_every_element_of_their_row(
    backend: Any, tools: Any, dtype: DType
) -> None:
    values = np.random.default_rng(0).integers(-9, 9, (50, 37)).astype(float)
    buffers = [tools.encode(values, dtype)]
    for scalar, golden in (
        (graph.total(source(0), Scope.ROW), values.sum(-1)),
        (graph.dot(source(0), source(0), Scope.ROW), (values**2).sum(-1)),
        (graph.peak(source(0), Scope.ROW), values.max(-1)),
    ):
        spec = PassSpec((50, 37), (dtype,), ((source(0) * 0.0 + scalar, dtype),))
        found = tools.run(backend, spec, buffers).output.numpy().reshape(50, 37)
        assert (found == golden[:, None]).all()


def test_tiles_of_whole_rows_give_the_bytes_of_one_tile(backend: Any, tools: Any) -> None:
    shape = (700, 1000)
    output = (source(0) - MEAN) * graph.row_rank(source(0))
    reductions = ((graph.total(output), None), (graph.dot(output, source(0)), None))
    spec = PassSpec(shape, (DType.FLOAT32,), ((output, DType.FLOAT32),), reductions)
    buffer = tools.encode(tools.values(3, 700000, 0), DType.FLOAT32)
    whole = tools.run(backend, spec, [buffer])
    step = piece_elements(shape)
    parts = [
        tools.run(backend, spec, [buffer[4 * at : 4 * min(at + step, 700000)]], at)
        for at in range(0, 700000, step)
    ]
    assert (
        np.concatenate([p.output.numpy() for p in parts]).tobytes()
        == whole.output.numpy().tobytes()
    )
    for i in range(2):
        joined = [x for p in parts for x in p.result.partials[i]]
        assert joined == list(whole.result.partials[i])


def test_a_tile_that_cuts_a_row_is_refused(backend: Any, tools: Any) -> None:
    spec = PassSpec((10, 100), (DType.FLOAT32,), ((source(0) - MEAN, DType.FLOAT32),))
    with pytest.raises(UsageError, match="cuts a row of 100"):
        tools.run(backend, spec, [tools.encode(np.zeros(150), DType.FLOAT32)])


def test_a_cut_per_row_is_refused(backend: Any) -> None:
    threshold = graph.largest(source(0), 3, Scope.ROW)
    spec = PassSpec((4, 3), (DType.FLOAT32,), ((source(0) * threshold.magnitude, DType.FLOAT32),))
    with pytest.raises(UsageError, match="each row"):
        backend.compile(spec)


def test_empty_rows_are_fine(backend: Any) -> None:
    spec = PassSpec((10, 0), (DType.FLOAT32,), ((source(0) - MEAN, DType.FLOAT32),))
    result = backend.compile(spec).run([memoryview(b"")], 0, 0, [memoryview(b"")])
    assert result.nonfinite_outputs == [(0, -1)]


def test_a_row_number_that_is_the_same_for_all_rows_is_spread(backend: Any, tools: Any) -> None:
    number = graph.apply(lambda _: 2.5, graph.total(source(0), Scope.ROW))
    spec = PassSpec((4, 3), (DType.FLOAT32,), ((source(0) + number, DType.FLOAT32),))
    found = tools.run(backend, spec, [tools.encode(np.zeros(12), DType.FLOAT32)]).output
    assert found.tolist() == [2.5] * 12


def test_rows_that_are_used_as_they_are_need_one_program(backend: Any, tools: Any) -> None:
    x = source(0)
    shifted = graph.exp(x - graph.peak(x, Scope.ROW))
    softmax = shifted / graph.total(shifted, Scope.ROW)
    values = np.random.default_rng(0).normal(size=(90, 70)).astype(np.float32)
    spec = PassSpec((90, 70), (DType.FLOAT32,), ((softmax, DType.FLOAT32),))
    assert len(backend.compile(spec)._segments) == 1
    found = tools.run(backend, spec, [tools.encode(values, DType.FLOAT32)]).output.numpy()
    powers = np.exp(values - values.max(-1, keepdims=True)).astype(np.float64)
    golden = (powers / powers.sum(-1, keepdims=True)).reshape(-1)
    np.testing.assert_allclose(found, golden, rtol=1e-6)


def test_one_row_sum_may_stand_in_elements_and_in_arithmetic(backend: Any, tools: Any) -> None:
    x = source(0)
    first = graph.total(x, Scope.ROW)
    second = graph.total(x * first, Scope.ROW)
    output = x * (first * 2.0) + first - second + graph.total(x * (second + 1.0), Scope.ROW)
    values = np.random.default_rng(0).integers(-3, 4, (60, 24)).astype(np.float64)
    spec = PassSpec((60, 24), (DType.FLOAT32,), ((output, DType.FLOAT64),), kept=(first, second))
    answer = tools.run(backend, spec, [tools.encode(values, DType.FLOAT32)])
    a = values.sum(-1, keepdims=True)
    b = (values * a).sum(-1, keepdims=True)
    golden = values * (a * 2) + a - b + (values * (b + 1)).sum(-1, keepdims=True)
    np.testing.assert_array_equal(answer.output.numpy().reshape(60, 24), golden)
    for kept, exact in zip(answer.result.kept, (a, b), strict=True):
        np.testing.assert_array_equal(kept, exact[:, 0])


def test_tensors_of_one_graph_have_their_own_known_rows(
    backend: Any, reference: Any, tools: Any
) -> None:
    row = graph.total(source(0), Scope.ROW)
    output = source(0) + row * 2.0
    values = np.arange(12.0).reshape(4, 3)
    buffer = tools.encode(values[2:], DType.FLOAT32)
    for known in ([1.0, 2.0, 3.0, 4.0], [8.0, 7.0, 6.0, 5.0]):
        found = {row: np.array(known)}
        spec = PassSpec((4, 3), (DType.FLOAT32,), ((output, DType.FLOAT32),), known=found)
        golden = values[2:] + 2.0 * np.array(known)[2:, None]
        for machine in (backend, reference):
            answer = tools.run(machine, spec, [buffer], start=6)
            assert answer.output.tolist() == golden.reshape(-1).tolist()
    fresh = PassSpec((4, 3), (DType.FLOAT32,), ((output, DType.FLOAT32),))
    answer = tools.run(backend, fresh, [tools.encode(values, DType.FLOAT32)])
    golden = values + 2.0 * values.sum(-1, keepdims=True)
    assert answer.output.tolist() == golden.reshape(-1).tolist()


def test_row_sums_take_part_in_pairs_of_operations(
    backend: Any, reference: Any, tools: Any
) -> None:
    x, y = source(0), source(1)
    first, second = graph.total(x, Scope.ROW), graph.total(y, Scope.ROW)
    output = ((x - first) * y + second) * ((x + second) * first - y) - first
    rng = np.random.default_rng(0)
    # Integers, so that sums are exact in any order.
    buffers = [
        tools.encode(rng.integers(-9, 9, (60, 24)), dtype)
        for dtype in (DType.BFLOAT16, DType.FLOAT32)
    ]
    spec = PassSpec((60, 24), (DType.BFLOAT16, DType.FLOAT32), ((output, DType.FLOAT32),))
    ours, theirs = (tools.run(x, spec, buffers).output for x in (backend, reference))
    tools.assert_same_bits(ours, theirs)
