"""A share of the singular directions is the decimal that it is written as, in every method that keeps one."""

from __future__ import annotations

import numpy as np
import pytest


def best(matrix, rank):
    u, s, vt = np.linalg.svd(matrix)
    return u[:, :rank] * s[:rank] @ vt[:rank]


@pytest.mark.parametrize(
    ("method", "shared"),
    [
        ("truncate", {}),
        ("tsv_m", {"lambda": 1.0}),
        ("optmerge", {"flavour": "lora", "solver": "closed", "start": "zero", "lambda": 1.0}),
    ],
)
def test_a_share_of_the_directions_is_the_decimal_that_is_written(merge, method, shared):
    """0.58 of 50 is 29, though the float 0.58 times 50 is below it; one task's best approximation is the merge."""
    base, expert = np.zeros((50, 53)), np.random.default_rng(1).normal(size=(50, 53))
    merged = merge(method, base, [expert], shared={"rank_share": 0.58, **shared})
    np.testing.assert_allclose(merged, best(expert, 29), atol=1e-10)


def test_each_of_49_tasks_has_its_49th_part_of_the_directions(merge):
    """2 of 98, though the float 1/49 times 98 is below 2."""
    drawn = np.random.default_rng(2).normal(size=(2, 98, 98))
    weights = [{"weight": 1.0}, *[{"weight": 0.0}] * 48]
    merged = merge("tsv_m", np.zeros((98, 98)), [drawn[0], *[drawn[1]] * 48], per_expert=weights)
    np.testing.assert_allclose(merged, best(drawn[0], 2), atol=1e-10)
