"""What becomes of sparse task vectors: the sum, or the disjoint mean of those that agree with an elected sign."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .order import joined
from .values import each, shared

NO_WEIGHT = 1e-8


def summed(
    family: Any, sparse: Mapping[str, Sequence[np.ndarray]], given: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """theta_0 + lambda sum_i w_i tau^_i, the sum divided by that of the weights where `normalize` says so."""
    merged = {}
    for name, parts in sparse.items():
        weights = each(given, "weight", name, len(parts))
        change = sum(w * p for w, p in zip(weights, parts, strict=True))
        if given["normalize"] != "none":
            signed = given["normalize"] == "signed"
            divisor = sum(weights) if signed else sum(map(abs, weights))
            change = change if abs(divisor) < NO_WEIGHT else change / divisor
        merged[name] = family.base[name] + shared(given, "lambda", name) * change
    return merged


def elected_signs(
    votes: Mapping[str, Sequence[np.ndarray]], vote: str, zero_sum: str
) -> dict[str, np.ndarray]:
    """The sign of every element's total, or of the total of its signs, and a sign where those cancel.

    majority and minority: the sign that most (fewest) elements of the model were given, none where it is a draw.
    """
    counted = (lambda x: np.sign(x)) if vote == "count" else (lambda x: x)
    signs = {n: np.sign(sum(counted(x) for x in parts)) for n, parts in votes.items()}
    if zero_sum == "zero":
        return signs
    majority = np.sign(joined(list(signs.values())).sum())
    filled = {"positive": 1.0, "negative": -1.0, "majority": majority, "minority": -majority}
    return {n: np.where(s == 0, filled[zero_sum], s) for n, s in signs.items()}


def disjoint(
    family: Any, sparse: Mapping[str, Sequence[np.ndarray]], given: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """theta_0 + lambda times the mean (sum, largest) of the w_i tau^_i that have the elected sign."""
    weights = {n: each(given, "weight", n, len(parts)) for n, parts in sparse.items()}
    weighted = {
        n: [w * p for w, p in zip(weights[n], parts, strict=True)] for n, parts in sparse.items()
    }
    votes = sparse if given.get("weight_stage") == "after" else weighted
    signs = elected_signs(votes, given.get("vote", "mass"), given["zero_sum"])
    merged = {}
    for name, parts in weighted.items():
        agree = [(np.sign(v) == signs[name]) & (v != 0) for v in votes[name]]
        if given.get("agreeing") == "max":
            kept = np.stack([np.where(a, p, 0.0) for a, p in zip(agree, parts, strict=True)])
            at = np.abs(kept).argmax(axis=0)
            change = np.take_along_axis(kept, at[None], axis=0)[0]
        else:
            change = _mean(parts, agree, weights[name], given["normalize"])
        merged[name] = family.base[name] + shared(given, "lambda", name) * change
    return merged


def _mean(
    parts: Sequence[np.ndarray], agree: Sequence[np.ndarray], weights: Sequence[float], how: str
) -> np.ndarray:
    total = sum(np.where(a, p, 0.0) for a, p in zip(agree, parts, strict=True))
    if how == "none":
        return total
    share = {"absolute": abs, "signed": float, "count": lambda _: 1.0}[how]
    divisor = sum(a * share(w) for a, w in zip(agree, weights, strict=True))
    return np.where(
        np.abs(divisor) < NO_WEIGHT, total, total / np.where(divisor == 0, 1.0, divisor)
    )
