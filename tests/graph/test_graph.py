"""The value graph: every operator means what it means in numpy, and scopes and names follow from the parts."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import pytest
import torch

from weightsmith.errors import UsageError
from weightsmith.graph import graph
from weightsmith.graph.backends.torch_memory import evaluate
from weightsmith.graph.columns import Columns
from weightsmith.graph.graph import Scope, Value, scalar, source, value
from weightsmith.graph.model_statistics import ModelStatistic
from weightsmith.tensors.dtypes import DType

X = np.array([[3.0, -1.5, 0.25], [-4.0, 0.5, 2.0]])
Y = np.array([[2.0, -1.5, 4.0], [0.5, -8.0, 2.0]])
STATISTIC = ModelStatistic("merge", "sum")
x, y = source(0), source(1)


def found(root: Value) -> np.ndarray:
    return evaluate(root, [torch.from_numpy(X), torch.from_numpy(Y)]).numpy()


ARITHMETIC = [operator.add, operator.sub, operator.mul, operator.truediv]
COMPARISONS = [operator.lt, operator.le, operator.gt, operator.ge]


@pytest.mark.parametrize("operation", ARITHMETIC + COMPARISONS, ids=lambda o: o.__name__)
def test_operators_of_values_numbers_and_scalars_are_those_of_numpy(operation: Any) -> None:
    np.testing.assert_array_equal(found(operation(x, y)), operation(X, Y))
    np.testing.assert_array_equal(found(operation(x, 2.0)), operation(X, 2.0))
    np.testing.assert_array_equal(found(operation(2.0, x)), operation(2.0, X))
    peak = graph.peak(y)
    np.testing.assert_array_equal(found(operation(x, peak)), operation(X, 4.0))


@pytest.mark.parametrize("operation", ARITHMETIC, ids=lambda o: o.__name__)
def test_operators_of_scalars_are_those_of_numbers(operation: Any) -> None:
    three, four = graph.peak(x), graph.peak(y)
    for root, wanted in [
        (operation(three, four), operation(3.0, 4.0)),
        (operation(three, 8), operation(3.0, 8.0)),
        (operation(8, three), operation(8.0, 3.0)),
        (-three, -3.0),
    ]:
        np.testing.assert_array_equal(found(value(root)), np.full(X.shape, wanted))


def test_functions_of_elements_are_those_of_numpy() -> None:
    rounded = X.astype(np.float16).astype(np.float64)
    for root, wanted in [
        (-x, -X),
        (abs(x), abs(X)),
        (graph.sign(x), np.sign(X)),
        (graph.sqrt(abs(x)), np.sqrt(abs(X))),
        (graph.exp(x), np.exp(X)),
        (graph.log(abs(x)), np.log(abs(X))),
        (graph.rounded(x, DType.FLOAT16), rounded),
        (graph.minimum(x, y), np.minimum(X, Y)),
        (graph.maximum(x, y), np.maximum(X, Y)),
        (graph.minimum(x, 1.0), np.minimum(X, 1.0)),
        (graph.maximum(1.0, x), np.maximum(X, 1.0)),
        (graph.clamp(x, -1.0, 2.0), np.clip(X, -1.0, 2.0)),
        (graph.where(x > y, x, 0.5), np.where(X > Y, X, 0.5)),
        (x.equals(y), X == Y),
        (graph.linear_combination([x, y], [0.25, -2.0]), 0.25 * X - 2.0 * Y),
        (graph.row_rank(x), np.argsort(np.argsort(abs(X), axis=1), axis=1)),
    ]:
        np.testing.assert_allclose(found(root), wanted, rtol=1e-15, err_msg=repr(root))


def test_masks_combine_and_are_known_as_masks() -> None:
    a, b = x > 0.0, y > 0.0
    for root, wanted in [
        (a & b, (X > 0) & (Y > 0)),
        (a | b, (X > 0) | (Y > 0)),
        (~a, ~(X > 0)),
        (graph.above(x, graph.largest(x, 2)), abs(X) >= 3.0),
    ]:
        np.testing.assert_array_equal(found(root), wanted)
        assert root.is_mask
    assert all(mask.is_mask for mask in (x < y, x <= y, x > y, x >= y, x.equals(y)))
    assert not any(v.is_mask for v in (x, x + y, abs(x), graph.where(a, x, y), -x))


def test_reductions_are_over_the_tensor_unless_a_row_is_asked_for() -> None:
    for root, whole, rows in [
        (graph.total, X.sum(), X.sum(axis=1)),
        (graph.peak, X.max(), X.max(axis=1)),
        (graph.norm, np.linalg.norm(X), np.linalg.norm(X, axis=1)),
        (lambda v, *e: graph.dot(v, y, *e), (X * Y).sum(), (X * Y).sum(axis=1)),
        (lambda v, *e: graph.count(v > 0.0, *e), 4.0, np.array([2.0, 2.0])),
    ]:
        np.testing.assert_allclose(found(value(root(x))), np.full(X.shape, whole))
        spread = np.repeat(rows[:, None], 3, axis=1)
        np.testing.assert_allclose(found(value(root(x, Scope.ROW))), spread)


def test_the_largest_are_selected_by_number_share_or_rule() -> None:
    for threshold, kept in [
        (graph.largest(x, 2), 2),
        (graph.largest(x, graph.count(x > 0.0)), 4),
        (graph.largest_share(x, 0.5), 3),
        (graph.largest_share(x * (x > 0.0), 0.5, of="nonzero"), 2),
        (graph.largest(x, half_of), 3),
        (graph.largest(x, 0), 0),
    ]:
        assert found(graph.above(threshold.inputs[0], threshold)).sum() == kept
        assert threshold.magnitude.scope is Scope.TENSOR
    np.testing.assert_array_equal(found(value(graph.largest(x, 2).magnitude)), np.full(X.shape, 3))


def half_of(population: int) -> int:
    return population // 2


def sum_and_quotient(a: Any, b: Any) -> tuple[Any, Any]:
    return a + b, a / b


def test_a_reduction_over_the_model_needs_a_name() -> None:
    with pytest.raises(UsageError, match="needs a name"):
        graph.total(x, Scope.MODEL)
    for node in (graph.total(x, STATISTIC), graph.largest(x, 1, STATISTIC)):
        assert node.scope is Scope.MODEL
        assert graph.statistic_of(node) == STATISTIC
        assert graph.adds_to(node)
    assert graph.statistic_of(graph.total(x)) is None
    silent = ModelStatistic("merge", "sum", layer=("stack", 3), counts=False)
    assert not graph.adds_to(graph.total(x, silent))
    assert graph.part(STATISTIC, "a") == ModelStatistic("merge", "sum: a")
    assert graph.part(Scope.ROW, "a") is Scope.ROW


def test_the_finer_scope_wins_where_two_meet() -> None:
    model, tensor, row = graph.total(x, STATISTIC), graph.total(x), graph.total(x, Scope.ROW)
    assert (model + 1.0).scope is Scope.MODEL
    assert (model * tensor).scope is Scope.TENSOR
    assert (row - tensor).scope is Scope.ROW
    assert graph.apply(max, 1.0, 2.0).scope is Scope.LITERAL
    assert graph.apply(max, row, model).scope is Scope.ROW
    assert [s.scope for s in graph.solve(sum_and_quotient, (row, 2.0), 2)] == [Scope.ROW, Scope.ROW]
    view = Columns(2, 3)
    column = graph.Scalar("total", (x,), (view,), Scope.COLUMN, view)
    assert (column + tensor).columns == view
    assert (column + tensor).scope is Scope.COLUMN
    assert (row + tensor).columns is None


def test_numbers_that_a_function_gives_are_told_apart_by_their_place() -> None:
    total, quotient = graph.solve(sum_and_quotient, (graph.peak(x), graph.peak(y)), 2)
    np.testing.assert_array_equal(found(value(total)), np.full(X.shape, 7.0))
    np.testing.assert_array_equal(found(value(quotient)), np.full(X.shape, 0.75))


def test_numbers_and_values_are_wrapped_once() -> None:
    wrapped = scalar(2)
    assert scalar(wrapped) is wrapped
    assert wrapped.attributes == (2.0,)
    assert value(x) is x
    assert value(wrapped).inputs == (wrapped,)


def test_whole_nodes_see_arrays_of_the_tensors_shape_and_their_attributes() -> None:
    def scaled(linalg: Any, a: Any, b: Any, factor: float) -> Any:
        assert a.shape == X.shape
        return linalg.sub(a, b * factor)

    def both(linalg: Any, a: Any) -> list[Any]:
        return [linalg.add(a, 1.0), a * 2.0]

    np.testing.assert_array_equal(found(graph.whole(scaled, x, y, attributes=(3.0,))), X - 3.0 * Y)
    first, second = graph.whole_parts(both, x, parts=2)
    np.testing.assert_array_equal(found(first - second), X + 1.0 - 2.0 * X)


def test_a_walk_lists_inputs_before_users_once_and_stops_at_what_is_known() -> None:
    total = graph.total(x * y)
    root = (x - total) + (x - total) * y
    order = graph.walk([root, total])
    assert len(order) == len(set(order))
    assert order[0] is x
    for node in order:
        assert all(order.index(i) < order.index(node) for i in node.inputs)
    known = graph.walk([root], {total})
    assert total in known
    assert total.inputs[0] not in known
    assert graph.walk([y, x]) == [y, x]


def test_only_scalars_and_cuts_are_reductions() -> None:
    assert graph.is_reduction(graph.total(x))
    assert graph.is_reduction(graph.largest(x, 1))
    assert not graph.is_reduction(graph.total(x) + 1.0)
    assert not graph.is_reduction(Value("total", (x,)))


def test_a_twin_with_other_inputs_keeps_everything_else() -> None:
    mask = (x > y).with_inputs((y, x))
    assert mask.inputs == (y, x)
    assert (mask.op, mask.is_mask) == ("gt", True)
    assert (x > y).inputs[0] is x
