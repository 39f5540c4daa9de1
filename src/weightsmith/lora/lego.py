"""LoRA-LEGO: adapters merged by clustering their units of rank one (Zhao et al., ICLR 2025, arXiv:2409.16167).

A unit is a column b of B and the row a of A that it goes with. All units of all adapters are pooled, clustered, and
each cluster becomes one unit of the result:

    mu_j = mean of the units [a; b] of cluster j                   mu_j <- mu_j mean ||x|| / ||mu_j||   (parameters)
    D = sqrt(r) / sqrt(k) sum_j b_j a_j                            r the mean rank, k units             (output)

(a, b), (-a, -b) and (c a, b / c) are one unit: sizes are balanced to ||a|| = ||b|| and signs fixed before anything is
compared, so the result depends on the products alone. Averaging shrinks units, which is what the first reweighting
makes up for; the second keeps the variance of the output when k units stand for r.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from weightsmith.deltas import LowRankChange, Matrix
from weightsmith.errors import UsageError
from weightsmith.lora.algebra import leading, spectrum, zeros

Labels = NDArray[np.intp]

# Distances that differ by less than this share of a point's square are equal.
_TIE = 1e-9


@dataclass(frozen=True, slots=True)
class Lego:
    """How units are clustered and reweighted.

    rank: clusters, and so the rank of the result; none: the largest rank of the adapters.
    units: as they are stored, which is the paper's, or the singular triplets of each change, which do not depend on
    how the product is written.
    similarity: of the halves, cos(a, a') + cos(b, b') with the largest element of a positive, or of the products,
    cos(a, a') cos(b, b'), which knows no sign.
    norm: with which sizes of units are measured when parameters are reweighted; inf is the authors' code's.
    """

    rank: int | None = None
    units: Literal["stored", "singular"] = "stored"
    similarity: Literal["halves", "products"] = "halves"
    norm: Literal["l2", "inf"] = "l2"
    reweight_parameters: bool = True
    reweight_output: bool = True
    iterations: int = 100


def clustered(
    changes: Sequence[tuple[float, LowRankChange]], how: Lego | None = None
) -> LowRankChange:
    """One change of the given rank from weighted changes of one shape; as many units as there are, if fewer.

    A weight scales the units of its change; units that are zero take no part. Deterministic: the first centres are
    those that explain most, one after the other, not random ones. O(k R^2 + R^2 (m + n)) for R units. Raises
    UsageError for no changes and for a rank below 1.
    """
    how = how or Lego()
    if not changes:
        raise UsageError("A combination of changes needs at least one change.")
    ranks = [change.rank for _, change in changes]
    count = max(ranks) if how.rank is None else how.rank
    if count < 1:
        raise UsageError(f"A rank of {count} has no meaning: give 1 or more.")
    left, right = _units(changes, how)
    if not len(left):
        return zeros(*changes[0][1].shape)
    similarity = _similarity(left, right, how)
    clusters = k_means(similarity, count, how.iterations)
    if how.similarity == "products":
        signs = _signs(left, right, clusters)
        left, right = left * signs, right * signs
    size = left.shape[1]
    units = np.concatenate([left, right], 1)
    centres = np.stack([_centre(units[clusters == j], how) for j in np.unique(clusters)])
    if how.reweight_output:
        centres = centres * np.sqrt(np.sqrt(np.mean(ranks) / len(centres)))
    return LowRankChange(np.ascontiguousarray(centres[:, :size].T), centres[:, size:])


def k_means(similarity: Matrix, count: int, iterations: int = 100) -> Labels:
    """The cluster of each of n points with inner products `similarity` (n x n); at most `count` clusters.

    Lloyd's algorithm on the points that the inner products stand for. Each first centre is the point that lowers the
    sum of squared distances most, so there is no randomness; of equal ones, as the nearest neighbours of each other
    are, the one that is nearer to all points.
    """
    points = len(similarity)
    if count >= points:
        return np.arange(points)
    sizes = np.diag(similarity)
    distances = np.maximum(sizes[:, None] + sizes[None, :] - 2.0 * similarity, 0.0)
    nearest = np.full(points, np.inf)
    remoteness = distances.sum(axis=0)
    centres: list[int] = []
    for _ in range(count):
        reach = np.minimum(nearest[:, None], distances)
        totals = reach.sum(axis=0)
        best = np.flatnonzero(totals <= totals.min() + _TIE * sizes.sum())
        centres.append(int(best[remoteness[best].argmin()]))
        nearest = reach[:, centres[-1]]
    clusters = _nearest(distances[:, centres], sizes)
    for _ in range(iterations):
        moved = _assigned(similarity, clusters, count)
        if np.array_equal(moved, clusters):
            break
        clusters = moved
    return clusters


def _assigned(similarity: Matrix, clusters: Labels, count: int) -> Labels:
    """The nearest mean of each point; an empty cluster attracts none."""
    member = np.zeros((len(similarity), count))
    member[np.arange(len(similarity)), clusters] = 1.0
    sizes = member.sum(axis=0)
    means = member / np.maximum(sizes, 1.0)
    to_means = similarity @ means
    within = np.einsum("ij,ij->j", means, to_means)
    distances = within - 2.0 * to_means
    distances[:, sizes == 0.0] = np.inf
    return _nearest(distances, np.diag(similarity), clusters)


def _nearest(distances: Matrix, sizes: Matrix, clusters: Labels | None = None) -> Labels:
    """The cluster of least distance, the first of those that differ by rounding; a point stays where it is if it can.

    Units of one change can be orthogonal, so equal distances are common, and rounding must not decide.
    """
    reach = distances.min(axis=1) + _TIE * sizes
    found: Labels = (distances <= reach[:, None]).argmax(axis=1)
    if clusters is None:
        return found
    stays = distances[np.arange(len(distances)), clusters] <= reach
    kept: Labels = np.where(stays, clusters, found)
    return kept


def _units(changes: Sequence[tuple[float, LowRankChange]], how: Lego) -> tuple[Matrix, Matrix]:
    """Units as rows [b] and [a], balanced, the largest element of each a positive; no zeros."""
    lefts, rights = [], []
    for weight, stored in changes:
        change = leading(spectrum(stored), stored.rank) if how.units == "singular" else stored
        left, right = change.left.T, change.right
        sizes = np.linalg.norm(left, axis=1), np.linalg.norm(right, axis=1)
        factor = weight * change.scale
        there = (sizes[0] > 0.0) & (sizes[1] > 0.0) & (factor != 0.0)
        left, right, b, a = left[there], right[there], sizes[0][there], sizes[1][there]
        root = np.sqrt(b * a * abs(factor))
        largest = right[np.arange(len(right)), abs(right).argmax(axis=1)]
        sign = np.where(largest < 0.0, -1.0, 1.0)
        lefts.append(left * (root / b * sign * np.sign(factor))[:, None])
        rights.append(right * (root / a * sign)[:, None])
    return np.concatenate(lefts), np.concatenate(rights)


def _similarity(left: Matrix, right: Matrix, how: Lego) -> Matrix:
    b, a = (half / np.linalg.norm(half, axis=1)[:, None] for half in (left, right))
    products: Matrix = (b @ b.T) * (a @ a.T) if how.similarity == "products" else b @ b.T + a @ a.T
    return products


def _signs(left: Matrix, right: Matrix, clusters: Labels) -> Matrix:
    """Signs by which each unit points the way of the largest of its cluster, one column."""
    signs = np.ones(len(left))
    sizes = np.linalg.norm(left, axis=1)
    for j in np.unique(clusters):
        own = np.flatnonzero(clusters == j)
        top = own[sizes[own].argmax()]
        along = left[own] @ left[top] + right[own] @ right[top]
        signs[own] = np.where(along < 0.0, -1.0, 1.0)
    return signs[:, None]


def _centre(units: Matrix, how: Lego) -> Matrix:
    mean: Matrix = units.mean(axis=0)
    if not how.reweight_parameters:
        return mean
    order = np.inf if how.norm == "inf" else 2
    size = np.linalg.norm(mean, order)
    if size == 0.0:
        return mean
    wanted = np.linalg.norm(units, order, axis=1).mean()
    mean *= wanted / size
    return mean
