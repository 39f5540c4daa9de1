"""DOGE-TA (Wei et al., ICML 2025, arXiv:2501.01230).

    lambda_i = eta / ||tau_i|| per tensor;   theta = theta_0 + sum_i lambda_i (tau_i + Delta) m_i
    Delta minimises sum_j <tau_j, tau_j - sum_i lambda_i (tau_i + Delta)>^2  subject to  P Delta = 0
    P = U_k U_k^T: the floor(min(m, n) / subspace) leading left directions of the tasks' floor(min(m, n) / N) each
    m_i = the share `density` of largest |tau_i| over the matrices of the model, none of which is 0; all for density 1

Directions that the tasks share alike, as all of one task's and of copies are, count in the order of their strength in
the lambda_i tau_i, and those that are equally strong, too, lie in U_k together or not at all. The minimiser is that of
least norm. Inner products are of matrices, or of their rows (objective rows). Solver adam
takes `steps` steps of Adam with rate `rate` from 0 on the gradient times I - P. Tensors that are no matrix, embeddings
and heads stay at the base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..shared.matrices import (
    EXACT_RANKS,
    PATHS,
    RULES,
    cut,
    is_matrix,
    put_together,
    unmerged,
)
from ..shared.order import largest_by_share
from ..shared.spectra import directions
from ..shared.values import with_preset

if TYPE_CHECKING:
    from ...families import Family

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        **RULES,
        "others": "base",
        "embeddings": "base",
        "eta": 0.07,
        "subspace": 6.0,
        "density": 0.3,
        "objective": "layer",
        "solver": "closed",
        "steps": 400,
        "rate": 1e-4,
    },
    "fusionbench": {"objective": "rows", "solver": "adam"},
}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"preset": "fusionbench", "steps": 60},
    {"objective": "rows", "density": 1.0},
    {"solver": "adam", "steps": 60, "rate": 1e-3, "eta": 0.5},
    {"eta": 0.3, "subspace": 2.0, "density": 0.6, "embeddings": "spectral"},
    {"subspace": 1.0, "others": "sum"},
    {"kernels": "matrix", "fused": "split", "others": "average"},
    {"stacks": "others", "embeddings": "sum"},
    {"orientation": "output_first", "density": 0.0},
    {"orientation": "input_first", "embeddings": "average", "exempt": "mlp.up"},
    *PATHS,
]
# Conjugate gradients of the rows' problem stop at 1e-10 of the right-hand side.
TOLERANCE = 1e-7
STRUCTURED = 3
# Values that differ by a smaller share of the largest are equal.
_ALIKE = 1e-6
EXACT = EXACT_RANKS


def doge(family: Family, parameters: dict) -> dict[str, np.ndarray]:
    """Equalised, shifted and masked task vectors."""
    how = with_preset(parameters, PRESETS)
    count = len(family.experts)
    names = [name for name in family.base if is_matrix(family.places[name], how)]
    masks = [_largest(family, i, names, how["density"]) for i in range(count)]
    merged = {}
    for name, base in family.base.items():
        deltas, place = family.deltas(name), family.places[name]
        if name not in names:
            merged[name] = base + unmerged(deltas, [how["eta"]] * count, place, how)
            continue
        lengths = [np.linalg.norm(delta) for delta in deltas]
        factors = [how["eta"] / length if length else 0.0 for length in lengths]
        groups = zip(*(cut(delta, place, how) for delta in deltas), strict=True)
        shift = put_together([_shift(group, factors, how) for group in groups], place, how)
        shifted = [f * (d + shift) for f, d in zip(factors, deltas, strict=True)]
        merged[name] = base + sum(s * m[name] for s, m in zip(shifted, masks, strict=True))
    return merged


def _largest(
    family: Family, task: int, names: Sequence[str], density: float
) -> dict[str, np.ndarray]:
    taus = {name: family.deltas(name)[task] for name in names}
    sizes = {name: tau.size for name, tau in taus.items()}
    return largest_by_share(taus, dict.fromkeys(taus, density), sizes)


def _shift(
    tasks: Sequence[np.ndarray], factors: Sequence[float], how: Mapping[str, Any]
) -> np.ndarray:
    """Delta of one matrix, with lambda_i of its whole tensor."""
    live = [task for task, factor in zip(tasks, factors, strict=True) if factor]
    total = sum(factors)
    if not live:
        return np.zeros_like(tasks[0])
    merged = sum(f * t for f, t in zip(factors, tasks, strict=True))
    basis = _shared(tasks, factors, how)
    outside = np.eye(tasks[0].shape[0]) - basis @ basis.T
    if how["objective"] == "rows":
        equations = [_by_row(task) for task in live]
    else:
        equations = [task.reshape(1, -1) for task in live]
    left = np.vstack(equations)
    wanted = np.concatenate(
        [e @ (t - merged).ravel() for e, t in zip(equations, live, strict=True)]
    )
    project = np.kron(outside, np.eye(tasks[0].shape[1]))
    if how["solver"] == "closed":
        return _nearest(total * left, wanted, project).reshape(merged.shape)
    return _adam(left, wanted, total, project, how).reshape(merged.shape)


def _nearest(left: np.ndarray, wanted: np.ndarray, project: np.ndarray) -> np.ndarray:
    """The shortest of the least-squares solutions x = project x of left x = wanted; 0 where project leaves rounding."""
    outer, values, inner = np.linalg.svd(left @ project, full_matrices=False)
    real = values > 1e-10 * np.linalg.norm(left)
    return np.asarray(inner[real].T @ ((outer[:, real].T @ wanted) / values[real]))


def _by_row(task: np.ndarray) -> np.ndarray:
    """The matrix that maps X, flattened, to its inner products with the task, row by row."""
    rows, columns = task.shape
    maps = np.zeros((rows, rows, columns))
    maps[np.arange(rows), np.arange(rows)] = task
    return maps.reshape(rows, rows * columns)


def _shared(
    tasks: Sequence[np.ndarray], factors: Sequence[float], how: Mapping[str, Any]
) -> np.ndarray:
    """U_k."""
    tolerance, smaller = how["rank_tolerance"], min(tasks[0].shape)
    own, k = max(1, smaller // len(tasks)), int(smaller / how["subspace"])
    joined = np.hstack([directions(task, own, tolerance).left for task in tasks])
    found = directions(joined, tolerance=tolerance)
    start, stop = _equal(found.values, k)
    if start == stop:
        return found.left[:, :start]
    alike = found.left[:, start:stop]
    scaled = [f * alike.T @ task for f, task in zip(factors, tasks, strict=True)]
    ranked = directions(np.hstack(scaled), tolerance=tolerance)
    taken, _ = _equal(ranked.values, k - start)
    return np.hstack([found.left[:, :start], alike @ ranked.left[:, :taken]])


def _equal(values: np.ndarray, k: int) -> tuple[int, int]:
    """First and last (excluded) of the values that are equal to both neighbours of the place k; (k, k) if none is."""
    if not 0 < k < len(values) or values[k - 1] - values[k] > _ALIKE * values[0]:
        return min(k, len(values)), min(k, len(values))
    equal = np.flatnonzero(np.abs(values - values[k]) <= _ALIKE * values[0])
    return int(equal[0]), int(equal[-1]) + 1


def _adam(
    left: np.ndarray,
    wanted: np.ndarray,
    total: float,
    project: np.ndarray,
    how: Mapping[str, Any],
) -> np.ndarray:
    point = first = second = np.zeros(left.shape[1])
    for step in range(1, how["steps"] + 1):
        residual = wanted - total * left @ point
        gradient = -2.0 * total * project @ (left.T @ residual)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        size = np.sqrt(second / (1 - 0.999**step)) + 1e-8
        point = point - how["rate"] * first / (1 - 0.9**step) / size
    return np.asarray(point)
