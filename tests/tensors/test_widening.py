"""Stored floats are widened to the values that torch gives them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from weightsmith.errors import CompatibilityError
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.widening import WORDS, widen


@pytest.mark.parametrize("name", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_every_pattern_of_bits_is_widened_as_torch_does(name: str) -> None:
    dtype = DType.parse(name)
    words = np.arange(256**dtype.itemsize, dtype=WORDS[dtype.itemsize]).reshape(-1, 4)
    signed = torch.as_tensor(words.astype(f"<i{dtype.itemsize}"))
    expected = signed.view(getattr(torch, name)).float().numpy()
    np.testing.assert_array_equal(widen(words, dtype), expected)
    is_negative = np.signbit(expected) & ~np.isnan(expected)
    assert (np.signbit(widen(words, dtype)) | ~is_negative).all()


@pytest.mark.parametrize(("dtype", "number"), [(DType.FLOAT32, "<f4"), (DType.FLOAT64, "<f8")])
def test_wide_floats_are_views(dtype: DType, number: str) -> None:
    values = np.array([[1.5, -0.0, np.inf]], number)
    words = values.view(WORDS[dtype.itemsize])
    assert np.shares_memory(widen(words, dtype), words)
    np.testing.assert_array_equal(widen(words, dtype), values)


def test_what_is_no_float_is_refused() -> None:
    with pytest.raises(CompatibilityError, match="int16 holds no floats"):
        widen(np.zeros(3, "<u2"), DType.INT16)
