"""Numbers per column: measured in a pass, the same for every tiling and instruction set, and broadcast back."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weightsmith.errors import UsageError
from weightsmith.graph import graph
from weightsmith.graph.backends import native
from weightsmith.graph.backends.torch_memory import evaluate
from weightsmith.graph.by_column import column_dot, column_peak, column_total
from weightsmith.graph.columns import ColumnPart, Columns, ColumnSums
from weightsmith.graph.graph import Scalar, Scope, source
from weightsmith.graph.passes import PassSpec
from weightsmith.tensors.digest_pieces import piece_elements
from weightsmith.tensors.dtypes import DType

# Shapes and the views on them: matrices, stacks, kernels, rows as columns, rows and matrices that no piece is made of.
CASES = [
    ((700, 500), Columns(700, 500)),
    ((700, 500), Columns(500, 1)),
    ((5, 300, 333), Columns(300, 333)),
    ((5, 300, 333), Columns(333, 1)),
    ((600, 250, 3), Columns(600, 750)),
    ((600, 250, 3), Columns(750, 1)),
    ((90000, 1, 3), Columns(3, 3)),
    ((2, 300000), Columns(2, 300000)),
    ((2, 300000), Columns(300000, 1)),
    ((8, 70000), Columns(140000, 1)),
    ((7, 1), Columns(7, 1)),
    ((1, 7), Columns(1, 7)),
    ((0, 4), Columns(0, 4)),
]


def measured(
    backend: Any, reduction: Scalar, buffers: list[memoryview], shape: tuple[int, ...], tiles: int
) -> np.ndarray:
    """A reduction over tiles of `tiles` pieces each, the last tile first."""
    dtypes = (DType.FLOAT32,) * len(buffers)
    compiled = backend.compile(PassSpec(shape, dtypes, reductions=((reduction, None),)))
    sums = ColumnSums(reduction.op, reduction.columns, shape)
    step, numel = tiles * piece_elements(shape), math.prod(shape)
    for start in reversed(range(0, numel, step)):
        count = min(step, numel - start)
        parts = [b[4 * start : 4 * (start + count)] for b in buffers]
        sums.admit(compiled.run(parts, start, count).partials[0])
    return sums.result


def in_matrices(values: np.ndarray, columns: Columns) -> np.ndarray:
    return values.reshape(-1, columns.rows, columns.width) if values.size else values[:0]


@pytest.mark.parametrize(("shape", "columns"), CASES, ids=str)
def test_each_column_gets_its_sum(
    backend: Any, reference: Any, tools: Any, shape: tuple[int, ...], columns: Columns
) -> None:
    # Eighths: exact in any order, so both backends and numpy must agree to the last bit.
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-64, 64, shape) / 8 for _ in range(2))
    buffers = [tools.encode(x, DType.FLOAT32) for x in (a, b)]
    expected = {
        column_total(source(0), columns): in_matrices(a, columns).sum(1),
        column_dot(source(0), source(1), columns): in_matrices(a * b, columns).sum(1),
        column_peak(source(0), columns): in_matrices(a, columns).max(1, initial=-math.inf),
    }
    for reduction, golden in expected.items():
        for machine in (backend, reference):
            found = measured(machine, reduction, buffers, shape, 1)
            np.testing.assert_array_equal(found, golden.reshape(-1) if a.size else found[:0])


@settings(max_examples=15, deadline=None)
@given(
    case=st.sampled_from(CASES),
    tiles=st.integers(2, 6),
    level=st.integers(0, 2),
    seed=st.integers(0, 9),
)
def test_neither_tiles_nor_their_order_nor_the_instruction_set_change_a_bit(
    case: tuple[tuple[int, ...], Columns], tiles: int, level: int, seed: int
) -> None:
    shape, columns = case
    values = np.random.default_rng(seed).normal(size=(2, *shape)).astype(np.float32)
    buffers = [memoryview(bytearray(x.tobytes())) for x in values]
    reduction = column_dot(source(0), source(1), columns)
    one = measured(native.load(0), reduction, buffers, shape, 1)
    assert one.tobytes() == measured(native.load(level), reduction, buffers, shape, tiles).tobytes()
    close = in_matrices(values[0].astype(float) * values[1], columns).sum(1).reshape(-1)
    np.testing.assert_allclose(one, close if close.size else one, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("shape", "columns"), CASES, ids=str)
@pytest.mark.parametrize("dtype", [DType.BFLOAT16, DType.FLOAT64], ids=str)
def test_numbers_of_columns_stand_in_their_elements(
    backend: Any, reference: Any, tools: Any, shape: tuple[int, ...], columns: Columns, dtype: DType
) -> None:
    count = math.prod(shape)
    rng = np.random.default_rng(1)
    known = rng.normal(size=columns.count(count))
    mean = column_total(source(0), columns)
    output = source(0) * 0.0 + graph.apply(np.negative, mean / 3.0)
    buffer = tools.encode(rng.integers(-9, 9, count), dtype)
    spec = PassSpec(shape, (dtype,), ((output, DType.FLOAT32),), known={mean: known})
    ours, theirs = (tools.run(x, spec, [buffer]).output for x in (backend, reference))
    tools.assert_same_bits(ours, theirs)
    lines = np.arange(count) // max(columns.elements, 1) * columns.width + np.arange(count) % max(
        columns.width, 1
    )
    np.testing.assert_array_equal(ours.numpy(), -(known[lines] / 3.0).astype(np.float32))


@pytest.mark.parametrize("columns", [Columns(6, 4), Columns(4, 1), Columns(3, 4)], ids=str)
def test_whole_tensors_in_memory_have_gradients(columns: Columns) -> None:
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    size = column_dot(source(0), source(0), columns)

    def formula(value: torch.Tensor) -> torch.Tensor:
        matrices = value.reshape(-1, columns.rows, columns.width)
        sums = (matrices * matrices).sum(1, keepdim=True)
        return (matrices * sums).reshape(6, 4)

    found = evaluate(source(0) * size, [x])
    torch.testing.assert_close(found, formula(x))
    (ours,) = torch.autograd.grad(found.sum(), x)
    (golden,) = torch.autograd.grad(formula(x).sum(), x)
    torch.testing.assert_close(ours, golden)


def test_a_number_for_all_columns_is_a_plain_number(backend: Any, tools: Any) -> None:
    columns = Columns(3, 2)
    peak = column_peak(source(0), columns)
    output = source(0) - graph.apply(np.max, peak)
    buffer = tools.encode([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], DType.FLOAT32)
    spec = PassSpec(
        (3, 2), (DType.FLOAT32,), ((output, DType.FLOAT32),), known={peak: np.array([5.0, 6.0])}
    )
    assert tools.run(backend, spec, [buffer]).output.tolist() == [-5.0, -4.0, -3.0, -2.0, -1.0, 0.0]


def scaled_unless_negative(numbers: np.ndarray) -> Any:
    return float(numbers[0]) if numbers[0] < 0 else numbers * 2.0


def test_tensors_of_one_graph_have_their_own_numbers(
    backend: Any, reference: Any, tools: Any
) -> None:
    """Even if a function gives one number for all columns of one, and one per column of another."""
    sums = column_total(source(0), Columns(3, 2))
    output = source(0) * graph.apply(scaled_unless_negative, sums)
    buffer = tools.encode(np.ones(6), DType.FLOAT32)
    for known, row in (([5.0, 6.0], [10, 12]), ([-5.0, 6.0], [-5, -5]), ([1.0, 2.0], [2, 4])):
        spec = PassSpec(
            (3, 2), (DType.FLOAT32,), ((output, DType.FLOAT32),), known={sums: np.array(known)}
        )
        for machine in (backend, reference):
            assert tools.run(machine, spec, [buffer]).output.tolist() == row * 3


def test_a_function_that_gives_too_few_numbers_is_refused(backend: Any) -> None:
    sums = column_total(source(0), Columns(3, 4))
    output = source(0) * graph.apply(np.diff, sums)
    spec = PassSpec((3, 4), (DType.FLOAT32,), ((output, DType.FLOAT32),), known={sums: np.ones(4)})
    with pytest.raises(UsageError, match="gave 3 of them for 4 columns"):
        backend.compile(spec)


def test_nan_and_infinity_reach_their_column_alone(
    backend: Any, reference: Any, tools: Any
) -> None:
    values = np.ones((4, 3))
    values[1, 0], values[2, 2] = math.nan, math.inf
    buffer = tools.encode(values, DType.FLOAT32)
    for machine in (backend, reference):
        total = measured(machine, column_total(source(0), Columns(4, 3)), [buffer], (4, 3), 1)
        peak = measured(machine, column_peak(source(0), Columns(4, 3)), [buffer], (4, 3), 1)
        np.testing.assert_array_equal(total, [math.nan, 4.0, math.inf])
        np.testing.assert_array_equal(peak, [math.nan, 1.0, math.inf])


def test_numbers_per_row_and_of_other_views_do_not_meet_them_in_one_scalar() -> None:
    column = column_total(source(0), Columns(4, 3))
    for other in (graph.total(source(0), Scope.ROW), column_total(source(0), Columns(3, 1))):
        with pytest.raises(UsageError, match="combine them as values"):
            column + other
    assert (column * graph.total(source(0)) + 1.0).columns == Columns(4, 3)


def test_a_tensor_that_is_not_made_of_whole_matrices_is_refused() -> None:
    with pytest.raises(UsageError, match=r"\[5, 3\] is not made of matrices of 4 x 3"):
        ColumnSums("total", Columns(4, 3), (5, 3))


def test_a_late_tile_is_waited_for_so_that_memory_is_bounded() -> None:
    shape = (64, 1 << 17)
    columns = Columns(64, 1 << 17)
    rows = piece_elements(shape) // shape[1]
    sums = ColumnSums("total", columns, shape)

    def admit(tile: int) -> None:
        start = tile * rows * shape[1]
        vector = np.full((1, shape[1]), float(tile + 1))
        sums.admit(ColumnPart(start, rows * shape[1], vector))

    count = shape[0] // rows
    with ThreadPoolExecutor(4) as threads:
        others = [threads.submit(admit, tile) for tile in range(1, count)]
        time.sleep(0.2)
        assert len(sums._waiting) == 8
        admit(0)
        for other in others:
            other.result(timeout=1)
    assert sums.result.tolist() == [count * (count + 1) / 2] * shape[1]
