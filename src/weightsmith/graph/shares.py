"""How many elements a share of them is."""

from __future__ import annotations

import math
from fractions import Fraction

# Places behind the point up to which a float is the decimal that it is written as, and not 1/3 or a result of sums.
_DECIMAL = 10**15
# Relative rounding of a float that a quotient gave, and of its product with a number of elements.
_ROUNDING = 2.0**-51


def floor_of_share(share: float, population: int) -> int:
    """floor(share N), where 0.29 of 100 is 29 although the float 0.29 lies below it; -ceil of a negative share.

    A share is the decimal that it is written as. One with more than 15 places, as quotients have (1/3), is known up to
    rounding only: its product is a whole number where it is one up to that rounding.
    """
    written = Fraction(repr(float(share)))
    if written.denominator <= _DECIMAL:
        return math.floor(written * population)
    product = share * population
    nearest = round(product)
    return nearest if abs(product - nearest) <= _ROUNDING * abs(product) else math.floor(product)
