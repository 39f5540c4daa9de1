"""CABS by arithmetic, and MetaGPT's coefficients."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from weightsmith import merge_state_dicts
from weightsmith.errors import RecipeError


def test_later_experts_take_the_largest_of_what_earlier_ones_left(merge):
    tasks = [np.array([5.0, -1, 4, 2]), np.array([9.0, -8, 1, 7]), np.array([1.0, 1, 1, 1])]
    found = merge("cabs", np.zeros(4), tasks, shared={"n": 2, "m": 4})
    np.testing.assert_array_equal(found, [5, -8, 4, 7])


def test_every_block_keeps_its_share_and_equal_magnitudes_count_in_their_order(merge):
    task = np.array([[100.0, 90, 80], [1, -1, 1], [0.5, 0, 0]])
    found = merge("cabs", np.zeros((3, 3)), [task], shared={"n": 1, "m": 3})
    np.testing.assert_array_equal(found, [[100, 0, 0], [1, 0, 0], [0.5, 0, 0]])


def test_an_element_that_a_task_left_alone_is_left_to_others(merge):
    tasks = [np.array([3.0, 0, 0, 0]), np.array([0.0, 2, 0, 0])]
    found = merge("cabs", np.zeros(4), tasks, shared={"n": 2, "m": 4})
    np.testing.assert_array_equal(found, [3, 2, 0, 0])


def test_tensors_larger_than_what_is_sorted_together_are_pruned_alike(merge, monkeypatch):
    from weightsmith.methods.conflicts import cabs

    tasks = list(np.random.default_rng(0).normal(size=(2, 41)))
    how = {"shared": {"n": 2, "m": 5}}
    whole = merge("cabs", np.zeros(41), tasks, **how)
    monkeypatch.setattr(cabs, "_TOGETHER", 12)
    np.testing.assert_array_equal(merge("cabs", np.zeros(41), tasks, **how), whole)


def test_more_elements_than_a_block_has_are_refused(merge):
    with pytest.raises(RecipeError, match=r"keep 5 of 4 elements at tensor .*; give an n up to m"):
        merge("cabs", np.zeros(4), [np.ones(4)], shared={"n": 5, "m": 4})


def test_coefficients_of_metagpt_are_shares_of_the_squared_lengths_of_whole_models():
    """||tau_1||^2 = 1 + 4 and ||tau_2||^2 = 9 + 6, over two tensors."""
    base = {"a": torch.zeros(1), "b": torch.zeros(2)}
    experts = [
        {"a": torch.tensor([1.0]), "b": torch.tensor([2.0, 0.0])},
        {"a": torch.tensor([3.0]), "b": torch.tensor([1.0, 5.0**0.5])},
    ]
    found = merge_state_dicts("task_arithmetic", experts, base=base, preset="metagpt")
    torch.testing.assert_close(found["a"], torch.tensor([0.25 * 1 + 0.75 * 3]))
    torch.testing.assert_close(found["b"], torch.tensor([0.25 * 2 + 0.75 * 1, 0.75 * 5.0**0.5]))
