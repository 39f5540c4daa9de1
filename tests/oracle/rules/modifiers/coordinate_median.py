"""The median of all experts in the place of each, element by element (Yin et al., ICML 2018, arXiv:1803.01498)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ...families import Family

VARIANTS: list[dict[str, Any]] = [{}]


def coordinate_median(family: Family, _: dict) -> Family:
    """Equal experts."""
    median = {n: np.median([e[n] for e in family.experts], axis=0) for n in family.places}
    return replace(family, experts=[median for _ in family.experts])
