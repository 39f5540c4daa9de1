"""Evaluations written down item by item."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from weightsmith.evaluation.scores import Evaluation, ItemScores, TaskScore


def right_and_wrong(
    task: str,
    right: Sequence[int],
    answers: Sequence[str] | None = None,
    slices: Sequence[str] | None = None,
) -> ItemScores:
    """Items of accuracy: 1 right, 0 wrong."""
    return ItemScores(
        task,
        "accuracy",
        tuple(f"{task}-{i}" for i in range(len(right))),
        np.asarray(right, np.float64),
        np.ones(len(right)),
        binary=True,
        answers=None if answers is None else tuple(answers),
        slices=None if slices is None else tuple(slices),
    )


def bits(task: str, values: Sequence[float], weights: Sequence[float]) -> ItemScores:
    """Texts with their bits and bytes."""
    return ItemScores(
        task,
        "bits_per_byte",
        tuple(f"{task}-{i}" for i in range(len(values))),
        np.asarray(values, np.float64),
        np.asarray(weights, np.float64),
        higher_is_better=False,
    )


def evaluation(
    subject: str, *items: ItemScores, groups: Mapping[str, str] | None = None
) -> Evaluation:
    """An evaluation of some tasks."""
    return Evaluation(
        subject,
        f"digest of {subject}",
        "suite",
        "digest of the suite",
        tuple(TaskScore.of(own, (groups or {}).get(own.task)) for own in items),
        {own.task: own for own in items},
    )


@pytest.fixture
def generator():
    return np.random.default_rng(7)


@pytest.fixture(scope="session")
def small_family(tmp_path_factory):
    from tests.comparison.small_family import build

    from weightsmith.comparison.family_opening import open_family

    return open_family(build(tmp_path_factory.mktemp("family") / "small"))
