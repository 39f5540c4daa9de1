"""The error of a rule on tokens held out of its fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from weightsmith.vocabularies.heldout import Errors, held_out_error
from weightsmith.vocabularies.missing import Missing, Pieces
from weightsmith.vocabularies.rules import LeastSquares, Mean, Omp, Procrustes, Subtokens, Zero
from weightsmith.vocabularies.token_tables import TokenTable

from .tables_made_here import table

TOKENS, SHARED = 700, 600


@pytest.fixture(scope="module")
def related(tmp_path_factory: pytest.TempPathFactory) -> Missing:
    """Two embedding spaces of 32 and 40 dimensions, each a linear image of the same 24 with noise."""
    folder = tmp_path_factory.mktemp("related")
    rng = np.random.default_rng(0)
    meaning = rng.standard_normal((TOKENS, 24))
    donor, own = (
        meaning @ rng.standard_normal((24, d)) + 0.5 + 0.1 * rng.standard_normal((TOKENS, d))
        for d in (32, 40)
    )
    shared = np.arange(SHARED)
    return Missing(
        table(folder, "own", torch.as_tensor(own[:SHARED], dtype=torch.bfloat16)),
        TOKENS - SHARED,
        None,
        table(folder, "donor", torch.as_tensor(donor, dtype=torch.bfloat16)),
        shared,
        shared,
        np.arange(SHARED, TOKENS),
    )


def test_better_rules_have_smaller_errors(related: Missing) -> None:
    """A linear relation: the linear map finds it; pursuit nearly; a rotation in part; the mean not at all."""
    rules = (LeastSquares(), Omp(k=20), Procrustes(), Mean(), Zero())
    found = [held_out_error(rule, related) for rule in rules]
    assert all(result is not None for result in found)
    errors = [result.errors.mean for result in found if result]
    assert errors == sorted(errors)
    assert errors[0] < 0.1 < errors[2] < 0.95
    assert errors[4] == 1
    assert found[0] is not None
    assert found[0].count == 60
    assert found[0].fitted_on == 540
    assert found[0].errors.cosine > 0.99
    assert found[0].references["mean"] == found[3].errors
    assert found[0].references["zero"] == Errors(1.0, 1.0, 0.0)
    assert found[0].facts["shared tokens"] == 540


def test_errors_are_those_of_rows_made_by_hand(tmp_path: Path) -> None:
    """The mean of the rows that are left, compared with the one held out."""
    values = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    missing = Missing(table(tmp_path, "own", values), 1)
    found = held_out_error(Mean(), missing)
    assert found is not None
    assert (found.count, found.fitted_on) == (1, 2)
    possible = []
    for i in range(3):
        x = values[i].double().numpy()
        guess = np.delete(values.double().numpy(), i, axis=0).mean(axis=0)
        cosine = guess @ x / np.linalg.norm(guess) / np.linalg.norm(x)
        possible.append((np.linalg.norm(guess - x) / np.linalg.norm(x), cosine))
    assert any(
        np.allclose((found.errors.mean, found.errors.cosine), expected) for expected in possible
    )
    assert found.errors.mean == found.errors.median


def test_the_sample_is_the_same_every_time_and_follows_the_seed(related: Missing) -> None:
    first = held_out_error(Procrustes(), related)
    assert held_out_error(Procrustes(), related) == first
    assert held_out_error(Procrustes(), related, seed=1) != first
    small = held_out_error(Procrustes(), related, largest=7)
    assert small is not None
    assert small.count == 7


def test_the_sample_does_not_depend_on_the_order_of_the_pairs(related: Missing) -> None:
    order = np.random.default_rng(1).permutation(SHARED)
    shuffled = replace(related, shared_own=order, shared_donor=order)
    first, second = (held_out_error(LeastSquares(), m) for m in (related, shuffled))
    assert first is not None
    assert second is not None
    assert second.errors.mean == pytest.approx(first.errors.mean, rel=1e-6)


def test_other_tokens_with_a_held_out_row_are_not_fitted_on(tmp_path: Path) -> None:
    """Every row twice: the copy would give the answer away."""
    rng = np.random.default_rng(2)
    own, donor = rng.standard_normal((2, 50, 8))
    twice = np.tile(np.arange(50), 2)
    missing = Missing(
        table(tmp_path, "own", own),
        1,
        None,
        table(tmp_path, "donor", donor),
        twice,
        twice,
        np.array([0]),
    )
    found = held_out_error(Omp(k=4), missing)
    assert found is not None
    assert (found.count, found.fitted_on) == (5, 90)
    assert found.errors.mean > 0.3


def test_pieces_are_measured_on_shared_tokens_that_have_some(related: Missing) -> None:
    pieces = Pieces.of([[(i + 1) % SHARED] if i % 2 else [] for i in range(SHARED)])
    assert held_out_error(Subtokens(), related) is None
    found = held_out_error(Subtokens(), replace(related, shared_pieces=pieces))
    assert found is not None
    assert found.count == 30
    assert found.errors.mean > 0.5
    assert found.facts == {"without pieces": 0.0}


def test_where_nothing_is_missing_nothing_is_wrong(related: Missing) -> None:
    found = held_out_error(Omp(), replace(related, count=0, wanted=np.array([], int)))
    assert found is not None
    assert (found.count, found.errors) == (0, Errors(0.0, 0.0, 1.0))


def test_too_few_tokens_and_rows_of_zeros_cannot_be_measured(tmp_path: Path) -> None:
    one: TokenTable = table(tmp_path, "one", torch.ones(1, 3))
    pair = np.array([0])
    assert held_out_error(Omp(), Missing(one, 1, None, one, pair, pair, pair)) is None
    assert held_out_error(Mean(), Missing(one, 1)) is None
    nothing = table(tmp_path, "nothing", torch.zeros(9, 3))
    assert held_out_error(Mean(), Missing(nothing, 1)) is None
