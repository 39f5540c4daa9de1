"""Leading directions of matrices that are read some rows at a time."""

from __future__ import annotations

import numpy as np
import pytest

from weightsmith.errors import NonFiniteError
from weightsmith.graph import range_finder
from weightsmith.graph.range_finder import row_blocks, sketched_spectrum, times, transposed_times
from weightsmith.graph.singular import signs


def matrix(m, n, decay, seed=0):
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.normal(size=(s, min(m, n))))[0] for s in (m, n))
    return (left * np.arange(1, min(m, n) + 1) ** -decay) @ right.T


@pytest.mark.parametrize("shape", [(90, 60), (60, 90)])
def test_steep_spectra_are_found_to_rounding(shape, monkeypatch):
    monkeypatch.setattr(range_finder, "_BLOCK", 700)
    whole = matrix(*shape, decay=4.0)
    found = sketched_spectrum(lambda a, b: whole[a:b], shape, signs((shape[1], 16), 0, "x"), 2)
    values = np.linalg.svd(whole, compute_uv=False)
    np.testing.assert_allclose(found.values[:6], values[:6], rtol=1e-9)
    missed = np.linalg.norm(whole - found.matrix())
    assert missed**2 == pytest.approx(
        np.square(values).sum() - np.square(found.values).sum(), rel=1e-4
    )
    np.testing.assert_allclose(found.left.T @ found.left, np.eye(16), atol=1e-12)
    np.testing.assert_allclose(found.right @ found.right.T, np.eye(16), atol=1e-12)


def test_power_iterations_bring_flat_spectra_near_the_best():
    whole = matrix(120, 100, decay=0.5)
    best = np.linalg.norm(np.linalg.svd(whole, compute_uv=False)[10:])
    errors = []
    for iterations in (0, 2):
        sketch = signs((100, 20), 0, "x")
        found = sketched_spectrum(lambda a, b: whole[a:b], (120, 100), sketch, iterations).leading(
            10
        )
        errors.append(np.linalg.norm(whole - found.matrix()))
    assert best <= errors[1] < errors[0]
    assert errors[1] < 1.02 * best


def test_products_are_those_of_the_whole(monkeypatch):
    monkeypatch.setattr(range_finder, "_BLOCK", 10)
    whole = matrix(17, 4, 0.0)
    factor = matrix(4, 3, 0.0, seed=1)
    np.testing.assert_allclose(times(lambda a, b: whole[a:b], (17, 4), factor), whole @ factor)
    turned = transposed_times(lambda a, b: whole[a:b], (17, 4), whole)
    np.testing.assert_allclose(turned, whole.T @ whole, atol=1e-14)


def test_rows_are_read_about_a_million_elements_at_a_time():
    assert list(row_blocks((5, 1 << 19))) == [(0, 2), (2, 4), (4, 5)]
    assert list(row_blocks((3, 2_000_000))) == [(0, 1), (1, 2), (2, 3)]
    assert list(row_blocks((7, 1))) == [(0, 7)]
    assert list(row_blocks((0, 3))) == []
    assert list(row_blocks((3, 0))) == []


@pytest.mark.parametrize("shape", [(90, 60), (60, 90)])
def test_the_transpose_is_decomposed_from_the_same_rows(shape, monkeypatch):
    monkeypatch.setattr(range_finder, "_BLOCK", 700)
    whole, sketch = matrix(*shape, decay=4.0), signs((shape[0], 16), 0, "x")
    found = sketched_spectrum(lambda a, b: whole[a:b], shape, sketch, 2, transposed=True)
    turned = sketched_spectrum(lambda a, b: whole.T[a:b], shape[::-1], sketch, 2)
    np.testing.assert_allclose(found.values[:8], turned.values[:8], rtol=1e-9)
    np.testing.assert_allclose(found.matrix(), turned.matrix(), atol=1e-12)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("transposed", [False, True])
def test_a_matrix_that_is_not_finite_is_refused(value, transposed):
    whole = matrix(30, 30, decay=1.0)
    whole[7, 2] = value
    sketch = signs((30, 5), 0, "x")
    with pytest.raises(NonFiniteError, match="no singular values"), np.errstate(invalid="ignore"):
        sketched_spectrum(lambda a, b: whole[a:b], (30, 30), sketch, 2, transposed=transposed)
