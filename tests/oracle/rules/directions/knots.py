"""KnOTS (Stoica et al., ICLR 2025, arXiv:2410.19735), and core-space merging's basis.

    [tau_1 .. tau_N] = U S [V_1 .. V_N]^T;   T_i = S V_i^T = U^T tau_i;   theta = theta_0 + lambda U T

T is TIES of the T_i: of each the share `density` of largest magnitude is kept, counted over all coefficients of the
model (or tensor); the sign of sum_i w_i T_i is elected; T is the mean of the w_i T_i that agree, divided by the sum of
their |w_i| (absolute), of their w_i (signed), or not at all. With `merger: dare_ties` coefficients are dropped at
random instead, with `dare_linear` nothing is elected either, and with `linear` nothing trimmed or elected.
`axis: inputs` puts task vectors on top of each other; with `basis: scaled` (preset scaled_basis) T_i = V_i^T and U S is
the basis. Coefficients that are 0 for every task are counted as well, as the authors' code does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..shared.matrices import (
    EXACT_RANKS,
    PATHS,
    RULE_VARIANTS,
    RULES,
    cut,
    is_matrix,
    put_together,
    unmerged,
)
from ..shared.order import count, largest, largest_by_share
from ..shared.randomness import uniform
from ..shared.spectra import directions
from ..shared.values import each, shared, with_preset

if TYPE_CHECKING:
    from ...families import Family, Place

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        **RULES,
        "weight": 1.0,
        "merger": "ties",
        "density": 0.2,
        "normalize": "absolute",
        "zero_sum": "zero",
        "scope": "model",
        "axis": "outputs",
        "basis": "orthonormal",
        "lambda": 1.0,
    },
    "scaled_basis": {"basis": "scaled"},
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"preset": "scaled_basis"},
    {"merger": "linear", "weight": [1.0, -0.5, 2.0]},
    {"merger": "dare_ties", "density": [0.4, 0.6, 1.0], "lambda": 0.6},
    {"merger": "dare_linear", "density": 0.5, "axis": "inputs"},
    {"axis": "inputs", "lambda": 0.6},
    {"axis": "inputs", "preset": "scaled_basis", "density": [0.3, 0.5, 1.0]},
    {"axis": "inputs", "fused": "split", "density": 0.6},
    {"scope": "tensor", "density": 0.5, "weight": [1.0, 0.5, 2.0]},
    {"normalize": "none", "density": 1.0},
    {"normalize": "signed", "density": 0.4, "weight": [1.0, -0.5, 2.0]},
    *RULE_VARIANTS,
    *PATHS,
]
# One decomposition; in the scaled basis coefficients of weak directions are divided by their values.
TOLERANCE = 1e-9
STRUCTURED = 3
EXACT = EXACT_RANKS
# Coefficients below this share of a task's largest are rounding: the task has nothing in that direction.
_ROUNDING = 1e-12


class Aligned(NamedTuple):
    """U (or U S) of every matrix of a tensor, and the T_i, each in the shape of the tensor with zeros behind it."""

    bases: list[np.ndarray]
    coefficients: list[np.ndarray]
    size: int


def knots(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """TIES in the tasks' common basis."""
    how = with_preset(parameters, PRESETS)
    experts = len(family.experts)
    aligned = {n: _aligned(family, n, how) for n, p in family.places.items() if is_matrix(p, how)}
    densities = {name: each(how, "density", name, experts) for name in aligned}
    for task in range(experts):
        own = {name: shares[task] for name, shares in densities.items()}
        if how["merger"] == "ties":
            _trim(aligned, task, own, how["scope"])
        elif how["merger"] != "linear":
            _drop(aligned, task, own, family)
    merged = {}
    for name, base in family.base.items():
        place, weights = family.places[name], each(how, "weight", name, experts)
        if name in aligned:
            bases, coefficients, _ = aligned[name]
            blocks = _sides(_merged(coefficients, weights, how), place, how)
            products = [u @ block[: u.shape[1]] for u, block in zip(bases, blocks, strict=True)]
            change = _tensor(products, place, how)
        else:
            change = unmerged(family.deltas(name), weights, place, how)
        merged[name] = base + shared(how, "lambda", name) * change
    return merged


def _aligned(family: Family, name: str, how: Mapping[str, Any]) -> Aligned:
    place, bases, size = family.places[name], [], 0
    parts: list[list[np.ndarray]] = [[] for _ in family.experts]
    for group in zip(*(_sides(d, place, how) for d in family.deltas(name)), strict=True):
        left, values, _ = directions(np.hstack(group), tolerance=how["rank_tolerance"])
        scale = values if how["basis"] == "scaled" else np.ones_like(values)
        bases.append(left * scale)
        size += left.shape[1] * group[0].shape[1]
        for side, blocks in zip(group, parts, strict=True):
            own = _without_rounding(left.T @ side) / scale[:, None]
            blocks.append(np.pad(own, ((0, len(side) - len(own)), (0, 0))))
    return Aligned(bases, [_tensor(blocks, place, how) for blocks in parts], size)


def _sides(array: np.ndarray, place: Place, how: Mapping[str, Any]) -> list[np.ndarray]:
    """The matrices of a tensor, turned where inputs have the basis."""
    return [m.T if how["axis"] == "inputs" else m for m in cut(array, place, how)]


def _tensor(sides: Sequence[np.ndarray], place: Place, how: Mapping[str, Any]) -> np.ndarray:
    return put_together([s.T if how["axis"] == "inputs" else s for s in sides], place, how)


def _without_rounding(coefficients: np.ndarray) -> np.ndarray:
    sizes = np.abs(coefficients)
    return np.where(sizes > _ROUNDING * sizes.max(initial=0.0), coefficients, 0.0)


def _trim(
    aligned: Mapping[str, Aligned], task: int, densities: Mapping[str, float], scope: str
) -> None:
    """Zero all but the largest coefficients of a task, in place."""
    own = {name: found.coefficients[task] for name, found in aligned.items()}
    if scope == "model":
        masks = largest_by_share(own, densities, {n: a.size for n, a in aligned.items()})
    else:
        masks = {n: largest(t, count(densities[n], aligned[n].size)) for n, t in own.items()}
    for name, coefficients in own.items():
        coefficients[~masks[name]] = 0.0


def _drop(
    aligned: Mapping[str, Aligned], task: int, densities: Mapping[str, float], family: Family
) -> None:
    """Keep each coefficient of a task with a probability, and divide what is kept by it, in place."""
    for name, found in aligned.items():
        own, density = found.coefficients[task], densities[name]
        kept = uniform(family.seed, family.label(task), name, own.shape) < density
        own[...] = np.where(kept, own, 0.0) / density


def _merged(
    coefficients: Sequence[np.ndarray], weights: Sequence[float], how: Mapping[str, Any]
) -> np.ndarray:
    weighted = np.array([w * t for w, t in zip(weights, coefficients, strict=True)])
    shares = np.abs(weights) if how["normalize"] == "absolute" else np.array(weights)
    if how["merger"] in ("linear", "dare_linear"):
        divisor = 1.0 if how["normalize"] == "none" else shares.sum()
        return np.asarray(weighted.sum(0) / divisor)
    agrees = np.sign(weighted) == np.sign(weighted.sum(0))
    total = np.where(agrees, weighted, 0.0).sum(0)
    if how["normalize"] == "none":
        return np.asarray(total)
    divisor = np.tensordot(shares, agrees, 1)
    return np.asarray(total / np.where(divisor == 0.0, 1.0, divisor))
