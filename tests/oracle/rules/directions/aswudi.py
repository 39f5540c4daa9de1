"""ASWUDI (Wei et al., ICLR 2026, arXiv:2505.19892): WUDI's minimiser within the K leading directions of a matrix.

The rules of the authors' code (MLLMerging, functional.py), K being at least 1 and at most the rank; y = sqrt(l):

    root_participation   ceil((sum y)^2 / sum l)            participation   ceil((sum l)^2 / sum l^2)
    stable_rank          ceil(sum l^2 / l_max^2)            entropy         ceil(exp(-sum p log p)), p = l / sum l
    gavish_donoho        number of y above omega(b) times the lower median of all n, b = min(m, n) / max(m, n)
    cumulative           smallest K whose l have the share x (.95) of sum l
    loss_elbow           smallest K with fit(K) <= x fit(0), x = .01
    wudi_risk            the K of least fit(K) + x size(K), counted from 0, x = 1

    fit(K) = sum_(k > K) l_k^2 ||T_0 v_k||^2 + ||D v_k||^2
    size(K) = sum_(k <= K) ||D v_k||^2 / l_k^2 + sum_(k > K) ||T_0 v_k||^2 = ||T||^2
    omega(b) = sqrt(2 (b + 1) + 8 b / (b + 1 + sqrt(b^2 + 14 b + 1))) / mu
    mu^2 = (1 - b)^2 + b, or 2 + sqrt 3 for b = 1

The code leaves -2 l_k <T_0 v_k, D v_k> out of fit. hard_threshold is the rule of Gavish and Donoho (2014) for noise of
unknown size: the number of y, which are the singular values of all tau_i / ||tau_i|| on top of each other, above
.56 b^3 - .95 b^2 + 1.82 b + 1.43 times their median, b being the aspect of that matrix.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared import filters
from ..shared.matrices import EXACT_RANKS, RULE_VARIANTS
from ..shared.values import with_preset

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {**filters.DEFAULTS, "rank_rule": "root_participation", "level": None}
}
_LEVELS = {"cumulative": 0.95, "loss_elbow": 0.01, "wudi_risk": 1.0}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"rank_rule": "participation", "start": "mean"},
    {"rank_rule": "entropy", "weight": [1.0, 0.5, 2.0]},
    {"rank_rule": "stable_rank"},
    {"rank_rule": "gavish_donoho"},
    {"rank_rule": "cumulative"},
    {"rank_rule": "cumulative", "level": 0.5, "start": "zero", "lambda": 0.5},
    {"rank_rule": "loss_elbow"},
    {"rank_rule": "loss_elbow", "level": 0.4},
    {"rank_rule": "loss_elbow", "start": "mean"},
    {"rank_rule": "wudi_risk"},
    {"rank_rule": "wudi_risk", "level": 0.01, "start": "zero"},
    {"rank_rule": "wudi_risk", "level": 20.0},
    {"rank_rule": "hard_threshold"},
    {"embeddings": "spectral"},
    *RULE_VARIANTS,
]
# As wudi on the leading directions.
TOLERANCE = 1e-9
STRUCTURED = 3
EXACT = EXACT_RANKS


def aswudi(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """WUDI in an adaptive subspace."""
    how = with_preset(parameters, PRESETS)
    level = how["level"] if how["level"] is not None else _LEVELS.get(how["rank_rule"], 0.0)

    def gains(seen: filters.Seen) -> np.ndarray:
        return filters.leading(max(1, _count(how["rank_rule"], seen, level)), seen.values)

    return filters.filtered(family, how, gains)


def _count(rule: str, seen: filters.Seen, level: float) -> int:
    """K."""
    values = seen.values
    roots, shares = np.sqrt(values), values / values.sum()
    if rule == "root_participation":
        return math.ceil(roots.sum() ** 2 / values.sum())
    if rule == "participation":
        return math.ceil(values.sum() ** 2 / (values**2).sum())
    if rule == "stable_rank":
        return math.ceil((values**2).sum() / values[0] ** 2)
    if rule == "entropy":
        return math.ceil(np.exp(-(shares * np.log(shares)).sum()))
    if rule == "gavish_donoho":
        return _above_noise(roots, seen.shape)
    if rule == "cumulative":
        return _first(np.cumsum(shares), level)
    if rule == "hard_threshold":
        return _above_threshold(roots, seen.rows, seen.shape[1])
    fits = _from(values**2 * seen.starts + seen.wanted)
    if rule == "loss_elbow":
        return int(np.argmax(fits <= level * fits[0] * (1 + 1e-12)))
    inside = np.concatenate([[0.0], np.cumsum(seen.wanted / values**2)])
    return int(np.argmin(fits + level * (inside + _from(seen.starts))))


def _from(terms: np.ndarray) -> np.ndarray:
    """Sums of all terms, of all but the first, and so on to none."""
    return np.append(np.cumsum(terms[::-1])[::-1], 0.0)


def _first(sums: np.ndarray, level: float) -> int:
    return int(np.argmax(sums >= level - 1e-12)) + 1


def _above_noise(roots: np.ndarray, shape: tuple[int, int]) -> int:
    """The authors' gavish_donoho; directions that are missing count as 0 in the median."""
    inputs = shape[1]
    b = min(shape) / max(shape)
    middle = np.sort([*roots, *[0.0] * (inputs - len(roots))])[(inputs - 1) // 2]
    mu = math.sqrt(2.0 + math.sqrt(3.0)) if b == 1.0 else math.sqrt((1.0 - b) ** 2 + b)
    top = math.sqrt(2.0 * (b + 1.0) + 8.0 * b / (b + 1.0 + math.sqrt(b * b + 14.0 * b + 1.0)))
    return int((roots > top / mu * middle).sum())


def _above_threshold(roots: np.ndarray, rows: int, inputs: int) -> int:
    """The rule of Gavish and Donoho."""
    short, long = sorted((rows, inputs))
    b = short / long
    omega = 0.56 * b**3 - 0.95 * b**2 + 1.82 * b + 1.43
    return int((roots > omega * np.median([*roots, *[0.0] * (short - len(roots))])).sum())
