"""Factors and solutions block by block."""

from __future__ import annotations

import numpy as np
import pytest

from weightsmith.methods.parts import triangular
from weightsmith.methods.parts.triangular import divided, factorised


def positive_definite(n: int, seed: int = 0) -> np.ndarray:
    """A symmetric matrix with eigenvalues from 1 to 100."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.standard_normal((n, n)))
    return (basis * np.geomspace(1.0, 100.0, n)) @ basis.T


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 16, 37])
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_are_divided_by_the_matrix(
    monkeypatch: pytest.MonkeyPatch, n: int, order: str
) -> None:
    """Of any number of blocks, the last of which may be a part of one, and rows stored either way."""
    monkeypatch.setattr(triangular, "_BLOCK", 8)
    matrix = positive_definite(n)
    expected = np.random.default_rng(1).standard_normal((5, n))
    rows = np.array(expected @ matrix, order=order)
    factor = factorised(np, matrix.copy())
    np.testing.assert_allclose(np.tril(factor) @ np.tril(factor).T, matrix, rtol=0, atol=1e-12)
    np.testing.assert_allclose(divided(np, rows, factor), expected, rtol=0, atol=1e-12)


def test_only_the_lower_triangle_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triangular, "_BLOCK", 4)
    matrix = positive_definite(11)
    lower = factorised(np, np.tril(matrix))
    np.testing.assert_array_equal(np.tril(lower), np.tril(factorised(np, matrix.copy())))


@pytest.mark.parametrize("bad", [3, 10])
def test_a_matrix_that_is_not_positive_definite_is_refused(
    monkeypatch: pytest.MonkeyPatch, bad: int
) -> None:
    """Whichever block has the negative pivot."""
    monkeypatch.setattr(triangular, "_BLOCK", 4)
    matrix = np.eye(11)
    matrix[bad, bad] = -1.0
    with pytest.raises(np.linalg.LinAlgError):
        factorised(np, matrix)


def test_torch_gives_the_same_solution_and_gradients() -> None:
    import torch

    matrix = torch.from_numpy(positive_definite(20))
    rows = torch.randn(3, 20, dtype=torch.float64, requires_grad=True)
    found = divided(torch, rows, factorised(torch, matrix))
    found.sum().backward()
    own = divided(np, rows.detach().numpy().copy(), factorised(np, matrix.numpy().copy()))
    np.testing.assert_allclose(found.detach().numpy(), own, rtol=0, atol=1e-12)
    wanted = np.linalg.solve(matrix.numpy(), np.ones(20))
    np.testing.assert_allclose(rows.grad.numpy(), np.tile(wanted, (3, 1)), rtol=0, atol=1e-12)
