"""Diagnostics of interference: what the weights of a base and its experts say before anything is merged.

With u_i = expert_i - base over all float tensors, P the pairs of experts, and U S V' the leading singular triples (a
tenth of the rank, at least one) of all experts' changes of one matrix, side by side:

    relative_delta         mean of |u_i| / |base|
    norm_imbalance         largest |u_i| / smallest |u_i|
    distance               mean over P of |u_i - u_j|
    delta_cosine           mean over P of u_i . u_j / (|u_i| |u_j|)
    delta_alignment        mean over P of its magnitude
    cancellation           1 - |sum of u_i|^2 / sum of |u_i|^2; negative where changes agree
    sign_conflict          pairs of changes of one value with opposite signs / pairs of changes of one value
    subspace_overlap       mean over matrices within layers of `inspection.subspaces`
    singular_interference  mean over matrices of |(U'U - I) S (V'V - I)|_1 / |S|_1 (Gargiulo et al., CVPR 2025)

Which of them predict how much a merge loses is measured in docs/diagnostics.md; `validated` has the numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightsmith.adapters import open_model
from weightsmith.checkpoints import Checkpoint, respelled
from weightsmith.deltas import read_matrix
from weightsmith.errors import CompatibilityError, UsageError
from weightsmith.graph import exact
from weightsmith.inspection import Changes, measure_interference, measure_overlaps

Matrix = NDArray[np.float64]
Triples = tuple[Matrix, Matrix, Matrix]

DIAGNOSTICS = (
    "relative_delta",
    "norm_imbalance",
    "distance",
    "delta_cosine",
    "delta_alignment",
    "cancellation",
    "sign_conflict",
    "subspace_overlap",
    "singular_interference",
)
_RANK_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The diagnostics of merging some experts, by name; None where one is not defined."""

    experts: tuple[str, ...]
    values: Mapping[str, float | None]

    def to_mapping(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"experts": list(self.experts), "values": dict(self.values)}


def diagnose(
    base: str | Path, experts: Sequence[str | Path], *, threads: int | None = None
) -> Diagnosis:
    """Measure every diagnostic of merging `experts`, fine-tunes of `base`, from their weights alone.

    Tensors are streamed, but for one matrix of the base and an expert at a time that is decomposed in float64. Raises
    UsageError for fewer than two experts, CompatibilityError if none of their tensors fits the base.
    """
    if len(experts) < 2:
        raise UsageError("Interference is between experts; give at least two.")
    opened = open_model(base)
    others = [open_model(expert) for expert in experts]
    changes = measure_interference(opened, others, threads=threads).total
    if changes is None:
        raise CompatibilityError(
            f"No tensor of {str(base)!r} is in all experts in the same shape; give the base that they were made from."
        )
    overlaps = [found.overlap for found in measure_overlaps(opened, others, threads=threads)]
    values: dict[str, float | None] = {
        **diagnostics_of(changes),
        "subspace_overlap": _mean(overlaps),
        "singular_interference": _mean(_interferences(opened, others)),
    }
    return Diagnosis(tuple(map(str, experts)), {name: values[name] for name in DIAGNOSTICS})


def diagnostics_of(changes: Changes) -> dict[str, float | None]:
    """The diagnostics that follow from sums over values."""
    number = range(len(changes.products))
    norms = [changes.norm(i) for i in number]
    pairs = list(itertools.combinations(number, 2))
    cosines = [cosine for i, j in pairs if (cosine := changes.cosine(i, j)) is not None]
    products = [changes.products[j][i] for i, j in pairs]
    squares = math.fsum(norm**2 for norm in norms)
    distances = [
        math.sqrt(max(0.0, norms[i] ** 2 + norms[j] ** 2 - 2 * changes.products[j][i]))
        for i, j in pairs
    ]
    return {
        "relative_delta": _mean([changes.relative(i) for i in number]),
        "norm_imbalance": max(norms) / min(norms) if min(norms) else None,
        "distance": _mean(distances),
        "delta_cosine": _mean(cosines),
        "delta_alignment": _mean([abs(cosine) for cosine in cosines]),
        "cancellation": -2 * math.fsum(products) / squares if squares else None,
        "sign_conflict": changes.sign_conflict,
    }


def _interferences(base: Checkpoint, experts: Sequence[Checkpoint]) -> list[float]:
    """The relative singular task interference of every matrix that at least two experts changed."""
    found = []
    experts = [respelled(expert, base) for expert in experts]
    for name, tensor in base.tensors.items():
        others = [e.tensors[name] for e in experts if name in e.tensors]
        is_matrix = tensor.dtype.is_float and len(tensor.shape) == 2
        if is_matrix and all(other.shape == tensor.shape for other in others):
            origin = read_matrix(tensor)
            triples = [_leading(read_matrix(other) - origin) for other in others]
            changed = [triple for triple in triples if triple[1].size]
            if len(changed) > 1:
                found.append(singular_interference(changed))
    return found


def singular_interference(triples: Sequence[Triples]) -> float:
    """|(U'U - I) S (V'V - I)|_1 / |S|_1 of triples U [m, r], S [r], V' [r, n], side by side; 0 for orthogonal ones."""
    left = np.concatenate([triple[0] for triple in triples], axis=1)
    values = np.concatenate([triple[1] for triple in triples])
    right = np.concatenate([triple[2] for triple in triples], axis=0)
    identity = np.eye(len(values))
    between = (left.T @ left - identity) @ (values[:, None] * (right @ right.T - identity))
    return float(np.abs(between).sum() / values.sum())


def _leading(change: Matrix) -> Triples:
    """The leading singular triples of a matrix; none of one that is 0 or not finite."""
    rows, columns = change.shape
    if not change.any() or not np.isfinite(change).all():
        return np.zeros((rows, 0)), np.zeros(0), np.zeros((0, columns))
    found = exact(np, change).leading(max(1, round(_RANK_SHARE * min(rows, columns))))
    return found.left, found.values, found.right


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
