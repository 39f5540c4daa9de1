"""The simple rules for missing rows: zeros, means, pieces; their parameters; and when they are fitted."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from weightsmith.errors import CompatibilityError, NonFiniteError, RecipeError, UsageError
from weightsmith.tensors.dtypes import DType
from weightsmith.vocabularies.aligned_rows import AlignedRows, Fill
from weightsmith.vocabularies.missing import Missing, MissingRule, Pieces
from weightsmith.vocabularies.rules import (
    RULES,
    FittedRows,
    LeastSquares,
    Mean,
    Omp,
    Procrustes,
    Subtokens,
    Zero,
    rule_named,
)
from weightsmith.vocabularies.token_tables import TokenTable

from .tables_made_here import read, table

VALUES = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
EXACT = VALUES.double().numpy()
DONOR_RULES = [Omp(), LeastSquares(), Procrustes()]


@pytest.fixture
def own(tmp_path: Path) -> TokenTable:
    return table(tmp_path, "embed", VALUES)


def made(rule: MissingRule, missing: Missing) -> np.ndarray:
    rows = FittedRows(rule, missing)
    assert rows.dtype is DType.FLOAT32
    return rows.read(np.arange(missing.count)).view(np.float32)


def test_zero_leaves_the_dtype_of_the_table(own: TokenTable) -> None:
    fill = Fill(np.array([50]), FittedRows(Zero(), Missing(own, 1)))
    aligned = AlignedRows(own.tensor, np.append(np.arange(50), -1), (fill,))
    assert torch.equal(read(aligned), torch.cat([VALUES, torch.zeros(1, 4).bfloat16()]))


def test_the_mean_is_that_of_the_rows_in_use(own: TokenTable) -> None:
    used = np.array([3, 4, 9])
    found = made(Mean(), Missing(own, 2, used=used))
    expected = EXACT[used].mean(axis=0)
    np.testing.assert_allclose(found, [expected, expected], rtol=1e-7)
    np.testing.assert_allclose(made(Mean(), Missing(own, 1))[0], EXACT.mean(axis=0), rtol=1e-6)


def test_a_mean_of_nothing_is_refused(own: TokenTable) -> None:
    with pytest.raises(CompatibilityError, match="'llama' has no rows in use"):
        FittedRows(Mean(), Missing(own, 1, used=np.array([], int), own_label="'llama'"))


def test_biases_take_zero_or_their_mean(tmp_path: Path) -> None:
    bias = table(tmp_path, "bias", torch.tensor([1.0, 2.0, 6.0]))
    rows = np.array([2, 1, 0, -1])
    for rule, expected in ((Zero(), 0.0), (Mean(), 3.0)):
        fill = Fill(np.array([3]), FittedRows(rule, Missing(bias, 1)))
        found = read(AlignedRows(bias.tensor, rows, (fill,)))
        assert found.tolist() == [6.0, 2.0, 1.0, expected]


PIECES = [[5], [7, 8, 8], [], [1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("variant", "is_head", "weights"),
    [
        ("mean", False, [1 / 4] * 4),
        ("sum", False, [1, 1, 1, 1]),
        ("weighted_mean", False, [0.1, 0.2, 0.3, 0.4]),
        ("weighted_mean", True, [0.4, 0.3, 0.2, 0.1]),
        ("first_last", False, [0, 0, 0, 1]),
        ("first_last", True, [1, 0, 0, 0]),
    ],
)
def test_pieces_are_put_together(
    own: TokenTable, variant: str, is_head: bool, weights: list[float]
) -> None:
    """The last piece counts most for an embedding, the first for a head; one piece is itself in every variant."""
    missing = Missing(own, 4, pieces=Pieces.of(PIECES), is_head=is_head)
    found = made(Subtokens(variant), missing)
    np.testing.assert_allclose(found[3], np.array(weights) @ EXACT[1:5], rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(found[0], EXACT[5].astype(np.float32))


def test_a_token_without_pieces_gets_the_mean_and_is_counted(own: TokenTable) -> None:
    rows = FittedRows(Subtokens(), Missing(own, 4, pieces=Pieces.of(PIECES), used=np.arange(9)))
    found = rows.read(np.array([2])).view(np.float32)
    np.testing.assert_allclose(found[0], EXACT[:9].mean(axis=0), rtol=1e-6)
    assert rows.fitted().facts == {"without pieces": 1.0}


def test_pieces_must_be_given_and_lie_in_the_table(own: TokenTable) -> None:
    with pytest.raises(UsageError, match="pieces"):
        FittedRows(Subtokens(), Missing(own, 1))
    with pytest.raises(UsageError, match="50 rows"):
        Missing(own, 1, pieces=Pieces.of([[50]]))
    with pytest.raises(UsageError, match="`pieces` has 1 entries, and 2"):
        Missing(own, 2, pieces=Pieces.of([[5]]))


def test_lists_of_pieces_are_taken_in_any_order() -> None:
    pieces = Pieces.of([[1, 2], [], [3], [4, 5, 6]])
    taken = pieces.take(np.array([3, 1, 0]))
    assert taken.lengths.tolist() == [3, 0, 2]
    assert taken.rows.tolist() == [4, 5, 6, 1, 2]


@pytest.mark.parametrize("rule", DONOR_RULES, ids=lambda rule: rule.name)
def test_without_shared_tokens_the_message_names_both_checkpoints(
    own: TokenTable, rule: MissingRule
) -> None:
    nothing = np.array([], int)
    missing = Missing(
        own,
        1,
        None,
        own,
        nothing,
        nothing,
        np.array([0]),
        own_label="'llama'",
        donor_label="'qwen'",
    )
    with pytest.raises(CompatibilityError, match="'llama' and 'qwen' share no token"):
        FittedRows(rule, missing)


@pytest.mark.parametrize("rule", DONOR_RULES, ids=lambda rule: rule.name)
def test_a_rule_that_needs_a_donor_says_so(own: TokenTable, rule: MissingRule) -> None:
    with pytest.raises(UsageError, match="no rows of a donor"):
        FittedRows(rule, Missing(own, 1))


@pytest.mark.parametrize("rule", [Mean(), Subtokens(), *DONOR_RULES], ids=lambda rule: rule.name)
def test_a_row_of_nan_is_named(tmp_path: Path, rule: MissingRule) -> None:
    values = VALUES.clone()
    values[7, 2] = float("nan")
    broken = table(tmp_path, "broken", values)
    shared = np.arange(20)
    missing = Missing(broken, 1, None, broken, shared, shared, np.array([30]), Pieces.of([[6, 7]]))
    with pytest.raises(NonFiniteError, match=r"Row 7 of tensor 'broken'"):
        FittedRows(rule, missing).read(np.array([0]))


def test_rules_are_made_by_name() -> None:
    assert list(RULES) == ["zero", "mean", "subtokens", "omp", "least_squares", "procrustes"]
    assert rule_named("omp", {"k": 8}) == Omp(k=8)
    assert rule_named("least_squares", {"ridge": 1, "intercept": False}) == LeastSquares(1.0, False)
    assert rule_named("procrustes", {"scale": False}) == Procrustes(True, False)
    assert rule_named("zero") == Zero()


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("random", {}, "no rule 'random'.*zero, mean, subtokens, omp"),
        ("omp", {"atoms": 3}, "no parameter 'atoms'.*k, tolerance"),
        ("omp", {"k": 2.5}, "k = 2.5 is no int"),
        ("omp", {"k": True}, "k = true is no int"),
        ("omp", {"k": 0}, "at least 1"),
        ("zero", {"k": 3}, "has: none"),
        ("subtokens", {"variant": "median"}, "no variant 'median'"),
        ("subtokens", {"variant": 3}, "variant = 3 is no str"),
        ("least_squares", {"ridge": -1}, "ridge of -1.0"),
        ("least_squares", {"ridge": float("nan")}, "ridge of nan"),
        ("procrustes", {"scale": 1}, "scale = 1 is no bool"),
    ],
)
def test_a_rule_that_is_not_known_is_refused(name: str, parameters: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        rule_named(name, parameters)


def test_identities_know_rule_parameters_and_inputs_without_reading(own: TokenTable) -> None:
    def identity(rule: MissingRule, shared: int = 20, wanted: int = 30) -> object:
        pairs = np.arange(shared)
        return FittedRows(
            rule, Missing(own, 1, None, own, pairs, pairs, np.array([wanted]))
        ).identity

    first = identity(Omp())
    assert first == identity(Omp())
    others = [
        identity(Omp(k=3)),
        identity(LeastSquares()),
        identity(Omp(), 21),
        identity(Omp(), 20, 31),
    ]
    assert first not in others


def test_a_fit_is_made_once_however_many_threads_ask(
    own: TokenTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    fit = Mean.fit
    monkeypatch.setattr(Mean, "fit", lambda self, missing: calls.append(1) or fit(self, missing))
    rows = FittedRows(Mean(), Missing(own, 5))
    assert calls == []
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: rows.read(np.array([i % 5])), range(40)))
    assert calls == [1]
    assert len({part.tobytes() for part in found}) == 1


def test_aligned_tables_travel_to_other_processes(own: TokenTable) -> None:
    """Fitted or not."""
    fill = Fill(np.array([50]), FittedRows(Mean(), Missing(own, 1)))
    aligned = AlignedRows(own.tensor, np.append(np.arange(50), -1), (fill,))
    for _ in range(2):
        copy = pickle.loads(pickle.dumps(aligned))
        assert copy.identity == aligned.identity
        assert torch.equal(read(copy), read(aligned))
