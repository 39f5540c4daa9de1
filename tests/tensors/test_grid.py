"""Distances between neighbouring numbers of a float type."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.grid import gaps, roundoff

NUMPY = {DType.FLOAT16: np.float16, DType.FLOAT32: np.float32, DType.FLOAT64: np.float64}
VALUES = [0.0, 1.0, 1.5, 2.0, -3.7, 1e-3, -6e-5, 3e-5, 1e-7, 1000.0, 65000.0]


@pytest.mark.parametrize("dtype", NUMPY)
def test_gaps_are_numpys_spacing(dtype):
    values = np.array(VALUES).astype(NUMPY[dtype])
    expected = abs(np.spacing(values).astype(np.float64))
    np.testing.assert_array_equal(gaps(values.astype(np.float64), dtype), expected)


def test_gaps_of_bfloat16_lead_to_the_next_number():
    values = torch.tensor(VALUES, dtype=torch.bfloat16).abs()
    following = torch.nextafter(values, torch.tensor(float("inf"), dtype=torch.bfloat16))
    expected = (following.double() - values.double()).numpy()
    np.testing.assert_array_equal(gaps(values.double().numpy(), DType.BFLOAT16), expected)


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        (DType.FLOAT8_E4M3FN, torch.float8_e4m3fn),
        (DType.FLOAT8_E5M2, torch.float8_e5m2),
        (DType.BFLOAT16, torch.bfloat16),
    ],
)
def test_gaps_of_all_positive_numbers_of_a_narrow_type_lead_to_the_next(dtype, stored):
    """From zero through the subnormal numbers to the largest, code by code."""
    codes = torch.arange(2 ** (stored.itemsize * 8 - 1), dtype=torch.int32)
    kept = codes.to(torch.uint8 if stored.itemsize == 1 else torch.int16).view(stored).double()
    numbers = kept[kept.isfinite()].numpy()
    np.testing.assert_array_equal(gaps(numbers, dtype)[:-1], np.diff(numbers))


def test_roundoff_is_half_of_the_gap_at_one():
    for dtype in (*NUMPY, DType.BFLOAT16, DType.FLOAT8_E4M3FN, DType.FLOAT8_E5M2):
        assert roundoff(dtype) == gaps(np.ones(1), dtype)[0] / 2
