"""Numbers of elements against exact rational arithmetic of the decimal that a person wrote."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightsmith.graph.shares import floor_of_share

POPULATIONS = st.one_of(st.integers(0, 1000), st.integers(0, 10**12))


@given(st.integers(0, 10**6), POPULATIONS)
def test_a_decimal_is_taken_as_it_is_written(millionths, population):
    written = Decimal(millionths).scaleb(-6)
    exact = Fraction(written) * population
    assert floor_of_share(float(written), population) == math.floor(exact)
    assert -floor_of_share(-float(written), population) == math.ceil(exact)


@pytest.mark.parametrize("share", [0.29, 0.57, 0.58, 0.07, 0.14, 0.55])
def test_whole_numbers_that_float_products_fall_short_of_or_pass_are_met(share):
    assert floor_of_share(share, 100) == int(Decimal(str(share)) * 100)


@given(st.integers(1, 10**5), st.integers(1, 10**7))
def test_a_quotient_is_taken_up_to_its_rounding(parts, whole):
    """1 / 49 of 49 is 0.9999999999999999 in floats."""
    assert floor_of_share(1 / parts, parts * whole) == whole
    assert floor_of_share(1 / parts, parts * whole - 1) == (parts * whole - 1) // parts


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (1.0, 7), (0.5, 3), (1e-300, 0)])
def test_ends_and_tiny_shares(share, count):
    assert floor_of_share(share, 7) == count


def test_a_decimal_of_fifteen_places_is_not_taken_for_a_quotient():
    """0.857142857142857 of 7 is 5.999999999999999, and 6 / 7 of 7 is 6."""
    assert floor_of_share(0.857142857142857, 7) == 5
    assert floor_of_share(6 / 7, 7) == 6
