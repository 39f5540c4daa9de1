"""OPCM (Tang et al., NeurIPS 2025, arXiv:2501.09522).

    A_1 = tau_1;  A_t = A_(t-1) + tau~_t;  theta = theta_0 + A_N n / ||A_N||,  n = mean_i ||tau_i||
    tau~ = tau - U_r U_r^T tau V_r V_r^T - sum_(i > r) (u_i^T tau v_i) u_i v_i^T,   A_(t-1) = U S V^T
    r = smallest number with  s_1 + ... + s_r >= alpha (s_1 + ... + s_q)

over the q directions that A_(t-1) has. Norms run over all tensors that are merged. In the authors' code (fusionbench) r
is the number of directions before the first with s_1 + ... + s_(r+1) > alpha sum, and 0 where there is none (alpha 1).
Tensors that are no matrix, and embeddings, are added up (others: sum), averaged, or left at the base.

With `previous` the first model is a merge of previous_count experts of mean norm previous_norm, whose change times
previous_lambda is A; it counts that often in averages and in n.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.matrices import (
    EXACT_RANKS,
    PATHS,
    RULE_VARIANTS,
    RULES,
    cut,
    is_matrix,
    put_together,
    rule_of,
)
from ..shared.spectra import directions
from ..shared.values import with_preset

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        **RULES,
        "others": "sum",
        "embeddings": "sum",
        "alpha": 0.5,
        "split": "inclusive",
        "previous": False,
        "previous_count": 0,
        "previous_lambda": 1.0,
        "previous_norm": 0.0,
    },
    "fusionbench": {"split": "exclusive"},
}
_BEFORE = {
    "previous": True,
    "previous_count": 2,
    "previous_lambda": 1.3,
    "previous_norm": 0.8,
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"preset": "fusionbench"},
    {"preset": "fusionbench", "alpha": 1.0},
    {"alpha": 0.0},
    {"alpha": 1.0},
    {"alpha": 0.3, "others": "average"},
    {"embeddings": "spectral"},
    _BEFORE,
    {**_BEFORE, "others": "average", "embeddings": "average", "alpha": 0.7},
    *RULE_VARIANTS,
    *PATHS,
]
# One decomposition for each expert but the first, and one norm of everything.
TOLERANCE = 1e-11
STRUCTURED = 3
EXACT = EXACT_RANKS


def opcm(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """The sum of projected task vectors at the mean length of one."""
    how = with_preset(parameters, PRESETS)
    places = family.places
    merged = [n for n in places if is_matrix(places[n], how) or rule_of(places[n], how) != "base"]
    taus = {name: family.deltas(name) for name in merged}
    before = int(how["previous"])
    norms = [
        np.sqrt(sum((deltas[i] ** 2).sum() for deltas in taus.values()))
        for i in range(before, len(family.experts))
    ]
    count = how["previous_count"] * before
    mean = (how["previous_norm"] * count + sum(norms)) / (count + len(norms))
    sums = {name: _folded(family, name, deltas, how) for name, deltas in taus.items()}
    length = np.sqrt(sum((change**2).sum() for change in sums.values()))
    factor = mean / length if length else 0.0
    return family.base | {n: family.base[n] + sums[n] * factor for n in merged}


def _folded(
    family: Family, name: str, deltas: Sequence[np.ndarray], how: Mapping[str, Any]
) -> np.ndarray:
    place, count = family.places[name], 0
    if how["previous"]:
        deltas, count = [deltas[0] * how["previous_lambda"], *deltas[1:]], how["previous_count"]
    if is_matrix(place, how):
        groups = zip(*(cut(delta, place, how) for delta in deltas), strict=True)
        return put_together([_fold(group, how) for group in groups], place, how)
    rule, (first, *rest) = rule_of(place, how), deltas
    if rule == "average":
        counted = max(count, 1)
        return (first * counted + sum(rest)) / (counted + len(rest))
    return first + sum(rest)


def _fold(matrices: Sequence[np.ndarray], how: Mapping[str, Any]) -> np.ndarray:
    merged = matrices[0]
    for tau in matrices[1:]:
        left, values, right = directions(merged, tolerance=how["rank_tolerance"])
        r = _shielded(values, how)
        block = left[:, :r].T @ tau @ right[:r].T
        diagonal = np.diagonal(left.T @ tau @ right.T)[r:]
        merged = (
            merged + tau - left[:, :r] @ block @ right[:r] - (left[:, r:] * diagonal) @ right[r:]
        )
    return merged


def _shielded(values: np.ndarray, how: Mapping[str, Any]) -> int:
    """r."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    wanted, slack = how["alpha"] * sums[-1], 1e-12 * sums[-1]
    if how["split"] == "inclusive":
        return int(np.argmax(sums >= wanted - slack))
    above = sums[1:] > wanted + slack
    return int(np.argmax(above)) if above.any() else 0
