"""Twin-Merging (NeurIPS 2024, arXiv:2406.15479) with fixed weights in the place of its router.

    theta* = theta_0 + shared_lambda sum_i tau_i;   v_i = the r strongest singular triplets of theta_i - theta*
    theta = theta* + lambda sum_i w_i v_i / sum_i w_i

Whatever is no matrix: v_i = theta_i - theta* (others: whole), or 0 (shared).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.matrices import EXACT_RANKS, PATHS, RULES, cut, is_matrix, put_together, rule_of
from ..shared.order import count
from ..shared.spectra import directions
from ..shared.values import each, shared, with_preset

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        **RULES,
        "others": "whole",
        "weight": 1.0,
        "rank": None,
        "rank_share": 0.1,
        "shared_lambda": 0.3,
        "lambda": 1.0,
    },
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"rank": 2, "lambda": 0.7, "shared_lambda": 0.29},
    {"rank_share": 0.5, "weight": [1.0, 0.25, 2.0], "others": "shared"},
    {"rank": 1000, "weight": [0.0, 1.0, 0.0]},
    {"embeddings": "whole", "kernels": "matrix", "fused": "split", "rank_share": 0.5},
    {"rank": 1000, "rank_tolerance": 0.3},
    *({"rank": 3, **path} for path in PATHS),
]
TOLERANCE = 1e-11
STRUCTURED = 3
EXACT = EXACT_RANKS


def twin(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The shared expert and the average of low-rank parts."""
    how = with_preset(parameters, PRESETS)
    merged = {}
    for name, base in family.base.items():
        place, deltas = family.places[name], family.deltas(name)
        common = shared(how, "shared_lambda", name) * sum(deltas)
        own = [delta - common for delta in deltas]
        if is_matrix(place, how):
            own = [
                put_together([_low_rank(m, how) for m in cut(v, place, how)], place, how)
                for v in own
            ]
        elif rule_of(place, how) == "shared":
            own = [0.0 * v for v in own]
        weights = np.array(each(how, "weight", name, len(own)))
        part = sum(w * v for w, v in zip(weights / weights.sum(), own, strict=True))
        merged[name] = base + common + shared(how, "lambda", name) * part
    return merged


def _low_rank(matrix: np.ndarray, how: dict[str, Any]) -> np.ndarray:
    rank = how["rank"] or max(1, count(how["rank_share"], min(matrix.shape)))
    return directions(matrix, rank, how["rank_tolerance"]).matrix()
