"""Sparse task vectors: the trim of TIES (arXiv:2306.01708) or the drop of DARE (arXiv:2311.03099) for every method.

tau'_i = m_i tau_i      m_i: the floor(density N) elements of largest magnitude
tau'_i = m_i tau_i / p  m_i ~ Bernoulli(p)
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.order import count, largest, largest_of_model
from ..shared.randomness import uniform

if TYPE_CHECKING:
    from ...families import Family

VARIANTS: list[dict[str, Any]] = [
    {"density": 0.5},
    {"density": 0.6, "scope": "model"},
    {"density": 0.7, "keep": "random"},
    {"density": 0.7, "keep": "random", "rescale": "none"},
    {"density": 0.4, "rescale": "l1"},
    {"density": 0.4, "rescale": "probability"},
    {"density": 1.0},
]


def sparsify(family: Family, parameters: dict) -> Family:
    """The family with sparse task vectors."""
    given = {"keep": "largest", "scope": "tensor", "rescale": "auto", **parameters}
    share = given["density"]
    how = given["rescale"]
    if how == "auto":
        how = "probability" if given["keep"] == "random" else "none"
    experts = []
    for i, expert in enumerate(family.experts):
        names = list(family.places)
        deltas = [expert[n] - family.base[n] for n in names]
        if given["keep"] == "random":
            masks = [
                uniform(family.seed, family.label(i), n, family.places[n].shape) < share
                for n in names
            ]
        elif given["scope"] == "model":
            whole = dict(zip(names, deltas, strict=True))
            kept = count(share, sum(d.size for d in deltas))
            masks = list(largest_of_model(whole, kept).values())
        else:
            masks = [largest(d, count(share, d.size)) for d in deltas]
        made = {}
        for n, delta, mask in zip(names, deltas, masks, strict=True):
            kept = np.where(mask, delta, 0.0)
            if how == "probability":
                kept = kept / share
            elif how == "l1" and np.abs(kept).sum() > 0:
                kept = kept * (np.abs(delta).sum() / np.abs(kept).sum())
            made[n] = family.base[n] + kept
        experts.append(made)
    return replace(family, experts=experts)
