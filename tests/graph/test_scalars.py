"""Functions between passes give the same numbers for floats, arrays and torch scalars, at the edges too."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from weightsmith.graph import scalars


def forms(number: float) -> list[Any]:
    return [np.float64(number), np.array([number]), torch.tensor(number, dtype=torch.float64)]


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("sqrt", 2.0),
        ("sin", 0.5),
        ("cos", 0.5),
        ("acos", 0.25),
        ("exp", 1.5),
        ("log", 3.0),
        ("floor", -1.5),
        ("absolute", -1.5),
    ],
)
def test_a_function_is_that_of_math_in_every_form(name, at):
    wanted = math.fabs(at) if name == "absolute" else getattr(math, name)(at)
    for given in forms(at):
        found = getattr(scalars, name)(given)
        assert np.asarray(found).item() == pytest.approx(wanted, rel=1e-15)
        assert isinstance(found, torch.Tensor) == isinstance(given, torch.Tensor)


def test_invalid_arguments_give_nan_or_infinity_without_a_warning():
    assert math.isnan(scalars.sqrt(np.float64(-1.0)))
    assert scalars.log(np.float64(0.0)) == -math.inf


def test_numbers_are_clamped_from_both_sides():
    for low, at, high, wanted in [
        (-1.0, -3.0, 2.0, -1.0),
        (-1.0, 3.0, 2.0, 2.0),
        (0.0, 1.0, 2.0, 1.0),
    ]:
        assert [np.asarray(scalars.clamp(x, low, high)).item() for x in forms(at)] == [wanted] * 3


@pytest.mark.parametrize("condition", [True, False])
def test_where_chooses_and_takes_any_mixture_of_forms(condition):
    wanted = 2.0 if condition else 5.0
    conditions = [condition, np.array(condition), torch.tensor(condition)]
    for test, a, b in itertools.product(conditions, [2.0, *forms(2.0)], [5.0, *forms(5.0)]):
        found = scalars.where(test, a, b)
        assert np.asarray(found).item() == wanted
        if any(isinstance(part, torch.Tensor) for part in (test, a, b)):
            assert found.dtype is torch.float64


def test_where_chooses_for_each_row():
    found = scalars.where(np.array([True, False]), np.array([1.0, 2.0]), 9.0)
    np.testing.assert_array_equal(found, [1.0, 9.0])
    assert isinstance(scalars.where(True, 1.0, 2.0), float)


def test_gradients_flow_to_the_chosen_branch_alone():
    a, b = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (2.0, 3.0))
    scalars.where(a < b, a * 5.0, b).backward()
    assert (float(a.grad), float(b.grad)) == (5.0, 0.0)


def test_a_quotient_of_zero_is_the_other_number_with_a_finite_gradient():
    assert scalars.divide(3.0, 4.0) == 0.75
    assert scalars.divide(3.0, 0.0) == 0.0
    assert scalars.divide(3.0, 0.0, otherwise=7.0) == 7.0
    np.testing.assert_array_equal(
        scalars.divide(np.array([1.0, 6.0]), np.array([0.0, 3.0]), 5.0), [5.0, 2.0]
    )
    zero = torch.zeros((), dtype=torch.float64, requires_grad=True)
    scalars.divide(torch.ones((), dtype=torch.float64), zero).backward()
    assert float(zero.grad) == 0.0


def test_an_exact_sum_has_one_rounding_and_depends_on_no_order():
    for numbers in itertools.permutations([1e16, 1.0, -1e16, 1e-3]):
        assert scalars.exact_sum(numbers) == 1.001
    assert scalars.exact_sum(iter([0.1] * 10)) == 1.0
    assert scalars.exact_sum([1.0, math.inf]) == math.inf
    assert math.isnan(scalars.exact_sum([math.inf, -math.inf]))
    assert scalars.exact_sum([]) == 0.0


def test_a_condition_holds_for_all_if_it_does_for_every_row():
    assert scalars.all_true(np.array([True, True])) is True
    assert scalars.all_true(np.array([True, False])) is False
    assert scalars.all_true(True) is True
    assert scalars.all_true(torch.tensor(False)) is False
