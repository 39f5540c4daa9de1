from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightsmith.errors import CompatibilityError
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.narrowing import fits, narrow
from weightsmith.tensors.widening import WORDS, widen


def _bfloat16(word):
    return Fraction(float(widen(np.array([word], "<u2"), DType.BFLOAT16)[0]))


@given(st.floats(min_value=-1e38, max_value=1e38, allow_nan=False))
def test_bfloat16_is_the_nearest_number_of_float64_with_ties_to_even(x):
    word = int(narrow(np.array([x]), DType.BFLOAT16)[0])
    found, value = abs(_bfloat16(word & 0x7FFF)), abs(Fraction(x))
    low, high = word & 0x7FFF, word & 0x7FFF
    neighbours = [w for w in (low - 1, low, high + 1) if 0 <= w < 0x7F80]
    nearest = min(neighbours, key=lambda w: (abs(_bfloat16(w) - value), w & 1))
    assert abs(_bfloat16(nearest) - value) == abs(found - value)
    assert nearest == word & 0x7FFF
    assert bool(word >> 15) == bool(np.signbit(x))


def test_a_number_just_above_a_tie_is_not_rounded_twice():
    # 1 + 2^-8 is half-way between two of bfloat16; float32 cannot tell what is 2^-40 above it from it.
    above = np.array([1 + 2.0**-8 + 2.0**-40, 1 + 2.0**-8, 1 + 3 * 2.0**-8 - 2.0**-40])
    assert widen(narrow(above, DType.BFLOAT16), DType.BFLOAT16).tolist() == [
        1 + 2.0**-7,
        1.0,
        1 + 2.0**-7,
    ]


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16])
def test_what_is_no_number_stays_none_and_what_is_too_large_becomes_infinite(dtype):
    words = narrow(np.array([np.nan, np.inf, -np.inf, 1e300, -1e300]), dtype)
    wide = widen(words.view(WORDS[dtype.itemsize]), dtype)
    assert np.isnan(wide[0])
    assert wide[1:].tolist() == [np.inf, -np.inf, np.inf, -np.inf]


def test_numbers_fit_a_dtype_that_loses_nothing():
    numbers = np.array([0.0, -0.0, 1.5, 2.0**-133])
    assert fits(numbers, DType.BFLOAT16)
    assert not fits(numbers, DType.FLOAT16)
    assert not fits(np.array([0.1]), DType.FLOAT32)
    assert fits(np.array([0.1]), DType.FLOAT64)


def test_scaled_types_are_refused():
    with pytest.raises(CompatibilityError, match="float8_e4m3fn"):
        narrow(np.zeros(2), DType.FLOAT8_E4M3FN)
