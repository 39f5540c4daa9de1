"""Changes that are stored as factors, against the same ones made dense element by element."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from safetensors.numpy import save_file

from weightsmith.deltas.changed import Towards, column_factors, read_elements
from weightsmith.deltas.changes import (
    Full,
    Hadamard,
    Kronecker,
    LowRankChange,
    Stacked,
    Weighted,
    transposed,
)
from weightsmith.deltas.row_views import ReplacedRows
from weightsmith.tensors.files.safetensors_header import read_header

RNG = np.random.default_rng(0)
LEFT, RIGHT = RNG.normal(size=(6, 2)), RNG.normal(size=(2, 4))
SMALL, LARGE = RNG.normal(size=(2, 2)), RNG.normal(size=(3, 2))
WHOLE = RNG.normal(size=(6, 4))


def dense_product(left, right):
    out = np.zeros((len(left), right.shape[1]))
    for i, j, k in itertools.product(range(len(left)), range(right.shape[1]), range(len(right))):
        out[i, j] += left[i, k] * right[k, j]
    return out


def dense_kron(left, right):
    (a, b), (c, d) = left.shape, right.shape
    out = np.zeros((a * c, b * d))
    for i, j, k, m in itertools.product(range(a), range(b), range(c), range(d)):
        out[i * c + k, j * d + m] = left[i, j] * right[k, m]
    return out


PRODUCT, KRON = dense_product(LEFT, RIGHT), dense_kron(SMALL, LARGE)
FORMS = {
    "low rank": (LowRankChange(LEFT, RIGHT, 0.5), 0.5 * PRODUCT),
    "by element": (Hadamard(LowRankChange(LEFT, RIGHT), Full(WHOLE), 3.0), 3.0 * PRODUCT * WHOLE),
    "kronecker": (Kronecker(SMALL, LARGE, -2.0), -2.0 * KRON),
    "whole": (Full(WHOLE, 0.25), 0.25 * WHOLE),
    "weighted": (
        Weighted([(0.5, Full(WHOLE)), (-1.0, LowRankChange(LEFT, RIGHT))]),
        0.5 * WHOLE - PRODUCT,
    ),
}


@pytest.mark.parametrize(("change", "dense"), FORMS.values(), ids=FORMS)
def test_any_rows_of_a_change_and_of_its_transpose(change, dense):
    for seen, expected in ((change, dense), (transposed(change), dense.T)):
        assert seen.shape == expected.shape
        for start, stop in itertools.combinations_with_replacement(range(len(expected) + 1), 2):
            np.testing.assert_allclose(seen.rows(start, stop), expected[start:stop], atol=1e-12)


def test_stacked_changes_lie_below_one_another_and_are_transposed_one_by_one():
    change = Stacked((Full(WHOLE), LowRankChange(LEFT, RIGHT)))
    dense = np.concatenate([WHOLE, PRODUCT])
    for start, stop in itertools.combinations_with_replacement(range(13), 2):
        np.testing.assert_allclose(change.rows(start, stop), dense[start:stop], atol=1e-12)
    turned = transposed(change)
    np.testing.assert_allclose(turned.rows(0, 8), np.concatenate([WHOLE.T, PRODUCT.T]), atol=1e-12)


def test_what_is_no_change_of_these_has_no_transpose():
    with pytest.raises(TypeError, match="int"):
        transposed(3)


@pytest.fixture
def stored(tmp_path):
    tensors = {
        "base": RNG.normal(size=(7, 5)).astype(np.float16),
        "other": RNG.normal(size=(7, 5)).astype(np.float32),
        "rows": RNG.normal(size=(2, 5)).astype(np.float32),
    }
    save_file(tensors, tmp_path / "t.safetensors")
    return {t.name: t for t in read_header(tmp_path / "t.safetensors")}, tensors


def test_the_change_from_one_tensor_to_another(stored):
    files, arrays = stored
    change = Towards(files["base"], files["other"])
    dense = arrays["other"].astype(np.float64) - arrays["base"].astype(np.float64)
    assert change.shape == (7, 5)
    assert np.array_equal(change.rows(2, 6), dense[2:6])
    assert np.array_equal(
        Towards(files["base"], files["other"], 7).rows(1, 3), dense.reshape(5, 7)[1:3]
    )


def test_some_rows_in_the_place_of_others(stored):
    files, arrays = stored
    seen = ReplacedRows(files["base"], files["rows"], (6, 1))
    dense = arrays["base"].astype(np.float32)
    dense[6], dense[1] = arrays["rows"]
    for start, stop in itertools.combinations_with_replacement(range(36), 2):
        assert np.array_equal(read_elements(seen, start, stop), dense.reshape(-1)[start:stop])
    assert seen.sources == (files["base"], files["rows"])


def test_the_columns_of_one_kernel_share_the_norm_of_their_input():
    weight = np.random.default_rng(3).normal(size=(5, 4, 3, 3))
    gain = np.array([1.0, 2.0, 0.5, 3.0])
    norms = [np.linalg.norm(weight[:, i]) for i in range(4)]
    squares = np.square(weight.reshape(5, -1)).sum(axis=0)
    found = column_factors(gain, squares).reshape(4, 9)
    assert np.allclose(found, (gain / norms)[:, None], rtol=1e-12)
