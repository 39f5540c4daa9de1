"""Singular value decompositions of whole matrices in float64, and the signs that sketches are made with.

`linalg` is numpy or torch; arrays are of that library.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Spectrum:
    """A ~ left diag(values) right: orthonormal columns (m, r), values falling, orthonormal rows (r, n)."""

    left: Any
    values: Any
    right: Any

    @property
    def rank(self) -> int:
        """How many directions there are."""
        return int(self.values.shape[0])

    def matrix(self) -> Any:
        """left diag(values) right."""
        return (self.left * self.values) @ self.right

    def polar(self) -> Any:
        """left right: every direction with weight 1."""
        return self.left @ self.right

    def leading(self, rank: int) -> Spectrum:
        """The `rank` strongest directions."""
        return Spectrum(self.left[:, :rank], self.values[:rank], self.right[:rank])


def exact(linalg: Any, matrix: Any) -> Spectrum:
    """The thin singular value decomposition of a finite float64 matrix."""
    try:
        return Spectrum(*linalg.linalg.svd(matrix, full_matrices=False))
    except linalg.linalg.LinAlgError:
        return embedded(linalg, matrix)


def embedded(linalg: Any, matrix: Any) -> Spectrum:
    """The same from the eigenvectors [v; u] of [0 R^T; R 0], R being the square factor of a QR decomposition.

    Slower than `exact`, but the symmetric eigenproblem converges always. Directions of value 0 are left out.
    """
    if matrix.shape[0] < matrix.shape[1]:
        turned = embedded(linalg, matrix.T)
        return Spectrum(turned.right.T, turned.values, turned.left.T)
    basis, factor = linalg.linalg.qr(matrix)
    k = factor.shape[0]
    zero = linalg.zeros_like(factor)
    top = linalg.concatenate([zero, factor.T], 1)
    bottom = linalg.concatenate([factor, zero], 1)
    values, vectors = linalg.linalg.eigh(linalg.concatenate([top, bottom]))
    values, vectors = falling(linalg, values, vectors, k)
    kept = max(1, int((values > 4 * k * 2.3e-16 * values[0]).sum()))
    vectors = vectors[:, :kept] * math.sqrt(2.0)
    return Spectrum(basis @ vectors[k:], values[:kept], vectors[:k].T)


def gram_spectrum(linalg: Any, matrix: Any, rank: int | None = None) -> Spectrum:
    """Directions from the eigenvectors of the smaller Gram matrix; values are measured on the matrix itself."""
    if matrix.shape[0] > matrix.shape[1]:
        turned = gram_spectrum(linalg, matrix.T, rank)
        return Spectrum(turned.right.T, turned.values, turned.left.T)
    values, vectors = linalg.linalg.eigh(matrix @ matrix.T)
    left = falling(linalg, values, vectors, rank)[1]
    images = left.T @ matrix
    lengths = linalg.sqrt((images * images).sum(1))
    return Spectrum(left, lengths, images / linalg.where(lengths > 0, lengths, 1.0)[:, None])


def signs(shape: tuple[int, int], seed: int, name: str) -> Any:
    """A matrix of -1 and +1 that depends on seed and tensor name alone, as float64."""
    import numpy as np

    from weightsmith.tensors.random import stream_key

    first, second = stream_key(seed, "sketch", name)
    count = math.prod(shape)
    raw = np.random.Philox(key=[first, second]).random_raw(-(-count // 64))
    bits = np.unpackbits(raw.astype("<u8").view(np.uint8))[:count]
    return (bits.astype(np.float64) * 2.0 - 1.0).reshape(shape)


def falling(linalg: Any, values: Any, vectors: Any, rank: int | None) -> tuple[Any, Any]:
    """Eigenvalues and vectors from the largest down, at most `rank` of them."""
    flipped, columns = linalg.flip(values, (0,)), linalg.flip(vectors, (1,))
    return flipped[:rank], columns[:, :rank]
