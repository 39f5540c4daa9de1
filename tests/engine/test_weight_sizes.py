"""Numbers that cannot mean anything are refused before anything is computed with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import weightsmith
from weightsmith.errors import RecipeError, UsageError

STATES = [{"w": torch.arange(4.0) * n} for n in (1, 2)]
BASE = {"w": torch.zeros(4)}


@pytest.mark.parametrize(
    "method", ["linear", "geometric_median", "nuslerp", "karcher", "multislerp"]
)
def test_weights_whose_sum_would_overflow_are_refused(method: str) -> None:
    with pytest.raises(RecipeError, match=r"weight must be of a size up to 1e\+100"):
        weightsmith.merge_state_dicts(method, STATES, parameters={"weight": 1e308})


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("doge", {"steps": 10**8}),
        ("wudi", {"steps": 10**8}),
        ("optmerge", {"steps": 10**8}),
        ("truncate", {"rank": 1, "power_iterations": 10**8}),
    ],
)
def test_steps_that_nobody_could_wait_for_are_refused(
    method: str, parameters: dict[str, Any]
) -> None:
    with pytest.raises(RecipeError, match="must lie in"):
        weightsmith.merge_state_dicts(method, STATES, base=BASE, parameters=parameters)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"modify": [{"clip": 3}]}, "A modifier is written as"),
        ({"modify": [{3: {}}]}, "A modifier is written as"),
        ({"preset": ["paper"]}, "A preset is given by its name"),
        ({"preset": "zz"}, "has no preset 'zz'"),
        ({"seed": -1}, "from 0 to 2"),
        ({"seed": 2**64}, "from 0 to 2"),
        ({"labels": ["a"]}, "2 different names"),
        ({"labels": ["a", "a"]}, "2 different names"),
        ({"labels": [1, 2]}, "labels are texts"),
    ],
)
def test_arguments_that_mean_nothing_are_refused_in_words(
    arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        weightsmith.merge_state_dicts("task_arithmetic", STATES, base=BASE, **arguments)
