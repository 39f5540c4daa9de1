"""CABS: in every block of consecutive elements the largest of each task vector, none of them in two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from weightsmith.errors import RecipeError
from weightsmith.graph import Site, Value, whole_parts, without_gradient
from weightsmith.methods.parts.registry import Base, method, per_expert, shared
from weightsmith.methods.parts.task_vectors import (
    fuse,
    lambda_parameter,
    normalize_parameter,
    task_vectors,
    weight_parameter,
)

# Elements whose places in their blocks are found together, which takes some 20 bytes each.
_TOGETHER = 2**20


@method(
    "cabs",
    title="CABS (conflict-aware and balanced sparsification)",
    paper="CABS: Conflict-Aware and Balanced Sparsification for Enhancing Model Merging, 2025, arXiv:2503.01874",
    base=Base.REQUIRED,
    presets={"reference": {"weight": 1.2}},
    about_presets={"reference": "the authors' recipe for models of 7 billion weights"},
    cost="O(N S log m) for S weights",
)
@dataclass(frozen=True, slots=True)
class Cabs:
    """Task arithmetic with task vectors of n elements in every m, which do not overlap.

        for i = 1 .. N:  m_i = the n_i largest |tau_i| among the elements of each block that no m_j, j < i, has
        theta = theta_0 + lambda sum_i w_i m_i tau_i

    Blocks are m consecutive elements of the stored tensor, rows one behind the other; the last may be shorter, and of
    equal magnitudes the first count. A balanced share stays everywhere, and no element is the sum of two tasks. The
    order of experts matters: the first is pruned as if alone, later ones take from what is left, and fewer than n where
    less than that is left. Elements that a task left alone are not kept, nor withheld from others as in the authors'
    code. 64 of 256 and the weight 1.2 (preset reference) are those of their recipe for 7 billion weights, where code
    that is given nothing takes 1 of 4. Raises RecipeError where n is above m. One whole tensor at a time, in the work
    precision.
    """

    weight: tuple[float, ...] = weight_parameter()
    kept: tuple[int, ...] = per_expert(
        64, low=0, key="n", doc="elements of a task vector kept in each block"
    )
    block: int = shared(256, low=1, key="m", doc="elements of a block")
    normalize: str = normalize_parameter("none")
    scale: float = lambda_parameter()

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Prune one after another, and add to the base."""
        base, deltas = task_vectors(base, experts)
        if max(self.kept) > self.block:
            raise RecipeError(
                f"cabs is to keep {max(self.kept)} of {self.block} elements at tensor {site.name!r}; give an n up to "
                "m, or a larger m."
            )
        prune = DisjointBlocks(self.kept, self.block)
        pruned = whole_parts(prune, *deltas, parts=len(deltas))
        return fuse(
            base, pruned, self.weight, site=site, normalize=self.normalize, scale=self.scale
        )


@dataclass(frozen=True, slots=True)
class DisjointBlocks:
    """Task vectors of one tensor -> as many, with so many elements in each block, of which no two are at one place."""

    kept: tuple[int, ...]
    block: int

    def __call__(self, linalg: Any, *deltas: Any) -> list[Any]:
        """Arrays of the shape and dtype of the inputs."""
        shape = deltas[0].shape
        flat = [delta.reshape(-1) for delta in deltas]
        size = math.prod(shape)
        step = max(1, _TOGETHER // self.block) * self.block
        pieces = [
            self._pruned(linalg, [d[start : start + step] for d in flat])
            for start in range(0, size, step)
        ]
        if not pieces:
            return list(deltas)
        return [linalg.concatenate(list(of)).reshape(shape) for of in zip(*pieces, strict=True)]

    def _pruned(self, linalg: Any, pieces: Sequence[Any]) -> list[Any]:
        taken, result = pieces[0] != pieces[0], []
        for piece, kept in zip(pieces, self.kept, strict=True):
            free = linalg.where(taken, 0.0, abs(without_gradient(piece)))
            mask = self._largest(linalg, free, kept)
            taken = taken | mask
            result.append(linalg.where(mask, piece, 0.0))
        return result

    def _largest(self, linalg: Any, sizes: Any, kept: int) -> Any:
        """Mask of the largest positive numbers of each block."""
        missing = -sizes.shape[0] % self.block
        padded = linalg.concatenate([sizes, linalg.zeros_like(sizes[:1]).repeat(missing)])
        blocks = padded.reshape((-1, self.block))
        ranks = _order(linalg, _order(linalg, -blocks))
        return ((ranks < kept) & (blocks > 0)).reshape(-1)[: sizes.shape[0]]


def _order(linalg: Any, rows: Any) -> Any:
    """Indices that sort each row, equal ones in their order."""
    if linalg is np:
        return np.argsort(rows, axis=1, kind="stable")
    return linalg.argsort(rows, dim=1, stable=True)
