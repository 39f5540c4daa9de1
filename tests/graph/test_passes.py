"""What a pass measures, reads and keeps, read from graphs; and numbers between passes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from weightsmith.graph import graph
from weightsmith.graph.graph import Scope, scalar, source
from weightsmith.graph.passes import (
    PassSpec,
    ShareOf,
    ThresholdPoint,
    evaluate_scalar,
    has_row_nodes,
    is_row_reduction,
    matrix_nodes,
    pass_roots,
    reduction_levels,
    rows_of_tile,
    rows_to_keep,
    selected_count,
    used_sources,
    work_dtype,
)
from weightsmith.tensors.dtypes import DType

x, y, z = source(0), source(1), source(2)
FLOATS = (DType.FLOAT32, DType.BFLOAT16)


def test_reductions_are_levelled_by_what_they_wait_for() -> None:
    mean, peak = graph.total(x), graph.peak(y)
    threshold = graph.largest(x - mean, peak)
    spread = graph.total(graph.where(graph.above(x, threshold), x, 0.0))
    alone = graph.total(z)
    row = graph.total(z, Scope.ROW)
    output = x * spread + alone * row
    assert reduction_levels([output]) == ((mean, peak, alone), (threshold,), (spread,))
    assert reduction_levels([output], {mean: 1.0}) == ((peak, alone), (threshold,), (spread,))
    assert reduction_levels([output], {threshold: ThresholdPoint(1, 1, 1.0)}) == ((spread, alone),)
    assert reduction_levels([x * row]) == ()
    whole = graph.total(x * row)
    assert reduction_levels([whole]) == ((whole,),)


def test_sources_rows_and_matrices_of_a_graph() -> None:
    total = graph.total(y)
    output = x + z * total
    assert used_sources([output], {}) == {0, 1, 2}
    assert used_sources([output], {total: 1.0}) == {0, 2}
    assert used_sources([scalar(1.0)], {}) == frozenset()
    row = graph.peak(y, Scope.ROW)
    for root, has_rows in [(x + row, True), (graph.row_rank(x), True), (output, False)]:
        assert has_row_nodes([root], {}) is has_rows
    inner = graph.whole(max, x)
    outer = graph.whole(max, inner + y, z)
    assert matrix_nodes([outer * 2.0]) == (inner, outer)


def test_the_roots_of_a_pass_are_its_outputs_and_what_is_reduced() -> None:
    threshold, product = graph.largest(x, graph.total(y)), graph.dot(y, z)
    reductions = ((threshold, None), (product, None))
    assert pass_roots(PassSpec((4,), FLOATS, (), reductions)) == [x, y, z]
    output = x + y
    outputs = ((output, DType.FLOAT32), (z, DType.BFLOAT16))
    assert pass_roots(PassSpec((4,), FLOATS, outputs, reductions)) == [output, z, x, y, z]


def test_a_pass_computes_in_float64_if_a_source_is_or_if_it_must() -> None:
    assert work_dtype([DType.FLOAT32, DType.FLOAT64]) is DType.FLOAT64
    assert work_dtype(FLOATS) is DType.FLOAT32
    assert PassSpec((4,), FLOATS).work is DType.FLOAT32
    assert PassSpec((4,), FLOATS, wide=True).work is DType.FLOAT64
    assert PassSpec((4,), (DType.FLOAT64,)).work is DType.FLOAT64


def test_rows_that_a_cut_selects_among_are_kept_for_the_passes_that_use_them() -> None:
    """A cut is measured again by every later pass, a sum is known from then on."""
    row, other = graph.total(x, Scope.ROW), graph.peak(y, Scope.ROW)
    threshold = graph.largest(x * row, 3)
    total = graph.total(y * other)
    output = graph.where(graph.above(x * row, threshold), x, total)
    assert rows_to_keep([output], [threshold, total], {}, (32, 16)) == (row,)
    assert rows_to_keep([x * other * total], [total], {}, (32, 16)) == (other,)
    assert rows_to_keep([x * total], [total], {}, (32, 16)) == ()


@pytest.mark.parametrize(
    ("shape", "is_kept"),
    [
        ((1 << 18, 16), True),
        (((1 << 18) + 1, 16), False),
        ((4, 16), True),
        ((4, 15), False),
        ((16,), True),
        ((0, 16), False),
    ],
)
def test_rows_are_kept_where_a_vector_of_them_is_small(shape: Any, is_kept: bool) -> None:
    row = graph.total(x, Scope.ROW)
    kept = rows_to_keep([x * row], [graph.total(x * row)], {}, shape)
    assert kept == ((row,) if is_kept else ())


def test_a_tile_gets_the_numbers_of_its_rows_and_nothing_else() -> None:
    row, total = graph.total(x, Scope.ROW), graph.total(x)
    known = {row: np.arange(10.0), total: 5.0}
    found = rows_of_tile(known, 12, 16, 4)
    assert list(found) == [row]
    assert found[row].tolist() == [3.0, 4.0, 5.0, 6.0]
    assert rows_of_tile(known, 0, 0, 0)[row].tolist() == []


def test_only_scalars_of_rows_are_row_reductions() -> None:
    assert is_row_reduction(graph.dot(x, y, Scope.ROW))
    assert not is_row_reduction(graph.dot(x, y))
    assert not is_row_reduction(graph.dot(x, y, Scope.ROW) + 1.0)
    assert not is_row_reduction(graph.largest(x, 1, Scope.ROW))


def half(population: int) -> int:
    return population // 2


def test_how_many_a_cut_selects() -> None:
    total = graph.total(x)
    assert selected_count(graph.largest(x, 3.9), {}, 100) == 3
    assert selected_count(graph.largest(x, total - 1.0), {total: 8.0}, 100) == 7
    assert selected_count(graph.largest(x, half), {}, 101) == 50
    assert selected_count(graph.largest_share(x, 0.29), {}, 100) == 29
    rule = selected_count(graph.largest_share(x, 0.25, of="nonzero"), {}, 100)
    assert rule == ShareOf(0.25)
    assert rule(10) == 2


def test_scalars_are_computed_from_what_is_known() -> None:
    a, b = graph.total(x), graph.peak(x)
    memo: dict[Any, Any] = {a: 6.0, b: 4.0}
    for node, wanted in [
        (a + b, 10.0),
        (a - b, 2.0),
        (a * b, 24.0),
        (a / b, 1.5),
        (-a, -6.0),
        (1.0 - a, -5.0),
        (graph.apply(math.hypot, a, 8.0), 10.0),
        (graph.solve(divmod, (a, b), 2)[0], 1.0),
        (graph.solve(divmod, (a, b), 2)[1], 2.0),
    ]:
        assert evaluate_scalar(node, memo) == wanted
        assert memo[node] == wanted
    rows = {a: np.array([1.0, 2.0]), b: 3.0}
    np.testing.assert_array_equal(evaluate_scalar(a * b + a, rows), [4.0, 8.0])


def test_division_by_zero_follows_the_hardware_without_a_warning() -> None:
    a, b = graph.total(x), graph.peak(x)
    assert evaluate_scalar(a / b, {a: 1.0, b: 0.0}) == math.inf
    assert math.isnan(evaluate_scalar(a / b, {a: 0.0, b: 0.0}))
    assert evaluate_scalar(1.0 / (a - 2.0), {a: 2.0}) == math.inf
    assert isinstance(evaluate_scalar(a, {a: 1.0}), np.float64)


def test_the_magnitude_of_a_cut_is_a_number_like_others() -> None:
    threshold = graph.largest(x, 2)
    known: dict[Any, Any] = {threshold: ThresholdPoint(7, 1, 2.5)}
    assert evaluate_scalar(threshold.magnitude * 2.0, dict(known)) == 5.0
    assert evaluate_scalar(threshold, dict(known)) == 2.5
    assert evaluate_scalar(threshold.magnitude, {threshold: 1.25}) == 1.25
