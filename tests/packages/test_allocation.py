"""Spending bytes: the best of all combinations wherever the hull's steps end, and a bound everywhere."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightsmith.errors import UsageError
from weightsmith.packages.codec_allocation import Option, hull, within_budget, within_error

options = st.lists(
    st.builds(Option, st.integers(0, 40), st.integers(0, 1000).map(float)),
    min_size=1,
    max_size=4,
)
problems = st.lists(options, min_size=1, max_size=4)


def cost(tensors, chosen):
    return sum(o[i].nbytes for o, i in zip(tensors, chosen, strict=True))


def error(tensors, chosen):
    return sum(o[i].squared_error for o, i in zip(tensors, chosen, strict=True))


def best(tensors, budget):
    """The least error of all combinations within the budget."""
    ways = itertools.product(*(range(len(o)) for o in tensors))
    return min(error(tensors, way) for way in ways if cost(tensors, way) <= budget)


def steps(tensors):
    """The budgets that a prefix of all hull steps, steepest first, spends."""
    found = []
    spent = 0
    for o in tensors:
        path = hull(o)
        spent += o[path[0]].nbytes
        for a, b in itertools.pairwise(path):
            gain = o[a].squared_error - o[b].squared_error
            found.append((-gain / (o[b].nbytes - o[a].nbytes), o[b].nbytes - o[a].nbytes))
    slopes = sorted(found)
    budgets = [spent]
    for slope, group in itertools.groupby(slopes, key=lambda step: step[0]):
        spent += sum(added for _, added in group)
        budgets.append(spent)
        assert slope < 0
    return budgets


@given(problems)
def test_the_hull_is_optimal_wherever_its_steps_end(tensors):
    for budget in steps(tensors):
        chosen = within_budget(tensors, budget)
        assert cost(tensors, chosen) <= budget
        assert error(tensors, chosen) == pytest.approx(best(tensors, budget))


@given(problems, st.integers(0, 200))
def test_between_steps_the_budget_holds_and_the_next_step_bounds_the_loss(tensors, budget):
    budgets = steps(tensors)
    if budget < budgets[0]:
        with pytest.raises(UsageError, match="at least"):
            within_budget(tensors, budget)
        return
    chosen = within_budget(tensors, budget)
    assert cost(tensors, chosen) <= budget
    below = max(b for b in budgets if b <= budget)
    assert error(tensors, chosen) <= best(tensors, below) + 1e-9
    assert error(tensors, chosen) >= best(tensors, budget) - 1e-9


@given(options)
def test_the_hull_lies_below_every_option_and_is_convex(found):
    path = [found[i] for i in hull(found)]
    slopes = [
        (a.squared_error - b.squared_error) / (b.nbytes - a.nbytes)
        for a, b in itertools.pairwise(path)
    ]
    assert all(slope > 0 for slope in slopes)
    assert all(a > b for a, b in itertools.pairwise(slopes))
    for option in found:
        for a, b in itertools.pairwise(path):
            if a.nbytes <= option.nbytes <= b.nbytes:
                share = (option.nbytes - a.nbytes) / (b.nbytes - a.nbytes)
                line = a.squared_error + share * (b.squared_error - a.squared_error)
                assert option.squared_error >= line - 1e-9


@given(options, st.floats(0, 1000))
def test_an_error_bound_is_met_with_the_fewest_bytes(found, largest):
    fitting = [o.nbytes for o in found if o.squared_error <= largest]
    if not fitting:
        with pytest.raises(UsageError):
            within_error(found, largest)
        return
    assert found[within_error(found, largest)].nbytes == min(fitting)
