"""A byte budget over tensors: optimal against every other choice."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from weightsmith.lora.decomposing import ChangeDirections
from weightsmith.lora.rank_allocation import allocate, spread


def spectra(draw):
    rng = np.random.default_rng(draw)
    return [np.sort(rng.exponential(size=4))[::-1] for _ in range(3)]


def error(values, ranks):
    return sum(np.square(v[r:]).sum() for v, r in zip(values, ranks, strict=True))


@given(st.integers(0, 10**6), st.integers(0, 90))
def test_no_choice_of_as_few_bytes_has_a_smaller_error(seed, budget):
    values, costs = spectra(seed), [3, 5, 8]
    ranks = allocate(values, costs, budget)
    spent = sum(r * c for r, c in zip(ranks, costs, strict=True))
    assert spent <= budget
    for other in itertools.product(range(5), repeat=3):
        # What the greedy choice spends is spent best among choices of whole ratios: with all of the budget spent, or
        # all directions kept, nothing else is as good.
        if sum(r * c for r, c in zip(other, costs, strict=True)) <= _prefix(values, costs, budget):
            assert error(values, ranks) <= error(values, other) + 1e-12


def _prefix(values, costs, budget):
    """Bytes of the directions taken before the first that does not fit, from a plain sort."""
    ratios = [
        (-(v[i] ** 2) / c, c) for v, c in zip(values, costs, strict=True) for i in range(len(v))
    ]
    spent = 0
    for _, cost in sorted(ratios):
        if spent + cost > budget:
            break
        spent += cost
    return spent


@given(st.integers(0, 10**6), st.integers(0, 90))
def test_what_is_left_of_the_budget_fits_no_further_direction(seed, budget):
    values, costs = spectra(seed), [3, 5, 8]
    ranks = allocate(values, costs, budget)
    left = budget - sum(r * c for r, c in zip(ranks, costs, strict=True))
    assert all(r == len(v) or c > left for r, v, c in zip(ranks, values, costs, strict=True))


def test_equal_gains_go_to_the_first_tensor():
    assert allocate([np.ones(2), np.ones(2)], [4, 4], 4) == [1, 0]


def test_tensors_without_directions_get_none():
    assert allocate([np.zeros(0), np.ones(1)], [1, 1], 5) == [0, 1]


@given(st.integers(0, 10**6), st.integers(1, 200), st.sampled_from([None, 2]))
def test_spectra_that_are_found_step_by_step_give_the_same_ranks(seed, budget, limit):
    rng = np.random.default_rng(seed)
    values = [np.sort(rng.exponential(size=8))[::-1] for _ in range(3)]
    costs = [3, 5, 8]

    def search(found):
        for count in (2, 4):
            yield ChangeDirections(found[:count], None, is_whole=False)
        yield ChangeDirections(found, None, is_whole=True)

    ranks = spread([search(v) for v in values], costs, budget, limit)
    assert ranks == allocate([v[:limit] for v in values], costs, budget)
