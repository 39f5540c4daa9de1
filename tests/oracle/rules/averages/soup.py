"""Uniform soup (Wortsman et al., ICML 2022, arXiv:2203.05482): the mean of the experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from ...families import Family

VARIANTS: list[dict[str, Any]] = [{}, {"experts": 1}, {"experts": 4}]


def soup(family: Family, _: dict) -> dict[str, np.ndarray]:
    """The mean, tensor by tensor."""
    experts = family.experts
    return {n: sum(e[n] for e in experts) / len(experts) for n in family.places}
