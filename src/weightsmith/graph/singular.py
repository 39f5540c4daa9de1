"""Singular value decompositions of whole matrices in float64, and the signs that sketches are made with.

`linalg` is numpy or torch; arrays are of that library.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class Spectrum:
    """A ~ left diag(values) right: orthonormal columns (m, r), values falling, orthonormal rows (r, n).

    Where gradients are recorded (see `torch_singular`), `core` (r, r) is diag(values) with all that turns left and
    right within their spans. Then only what does not depend on that choice has its gradient: `matrix`, `polar`,
    projections on left and right, and `left core right` in every other way. `separated` gives each direction its own.

    `beyond` is the largest value of a direction that was left out; `tensor` the name that errors give.
    """

    left: Any
    values: Any
    right: Any
    core: Any = None
    beyond: float = 0.0
    tensor: str = ""

    @property
    def rank(self) -> int:
        """How many directions there are."""
        return int(self.values.shape[0])

    def matrix(self) -> Any:
        """left diag(values) right."""
        return self.scaled(self.left) @ self.right

    def polar(self) -> Any:
        """left right: every direction with weight 1."""
        return self.paired(self.left) @ self.right

    def rows(self) -> Any:
        """diag(values) right: the images of the left directions."""
        return self.values[:, None] * self.right if self.core is None else self.core @ self.right

    def scaled(self, columns: Any) -> Any:
        """columns diag(values), for columns (l, r) each of which goes on with a row of `right`."""
        return columns * self.values if self.core is None else columns @ self.core

    def paired(self, columns: Any) -> Any:
        """The columns (l, r), each of which goes on with a row of `right`, unscaled."""
        if self.core is None:
            return columns
        from weightsmith.graph.backends.torch_singular import unitary

        return columns @ unitary(self.core, self.values, self.tensor)

    def through(self, columns: Any, function: Callable[[Any], Any]) -> Any:
        """columns f(C) for a function of the values of a symmetric matrix, which works elementwise: diag(f(values))."""
        if self.core is None:
            return columns * function(self.values)
        from weightsmith.graph.backends.torch_singular import of_symmetric

        return columns @ of_symmetric(self.core, self.values, function)

    def leading(self, rank: int) -> Spectrum:
        """The `rank` strongest directions."""
        return self if rank >= self.rank else self.only(slice(rank))

    def only(self, kept: Any) -> Spectrum:
        """Some of the directions: a slice, or a mask."""
        if self.core is None:
            beyond = self._beyond(kept)
            return Spectrum(self.left[:, kept], self.values[kept], self.right[kept], None, beyond)
        inner = self._within_core(kept)
        return replace(inner, left=self.left @ inner.left, right=inner.right @ self.right)

    def _within_core(self, kept: Any) -> Spectrum:
        """Some of the directions of C, which is diagonal here."""
        from weightsmith.graph.backends.torch_singular import identity

        own = identity(self.core)
        within = Spectrum(own, without_gradient(self.values), own, None, self.beyond)
        return _with_gradients(self.core, within, kept, self.tensor)

    def _beyond(self, kept: Any) -> float:
        values = without_gradient(self.values)
        is_out = values == values
        is_out[kept] = False
        return max(self.beyond, float(values[is_out].max())) if bool(is_out.any()) else self.beyond

    def within(self, basis: Any) -> Spectrum:
        """The directions of a matrix whose images in an orthonormal basis have these."""
        return replace(self, left=basis @ self.left)

    def times(self, factor: Any) -> Spectrum:
        """Those of the matrix times a number, whose sign goes into the values."""
        core = None if self.core is None else self.core * factor
        beyond = self.beyond * abs(float(without_gradient(factor)))
        return replace(self, values=self.values * factor, core=core, beyond=beyond)

    def separated(self) -> Spectrum:
        """Every direction by itself, so that left, values and right have gradients of their own.

        Directions of equal values have none: GradientError then comes out of the gradient.
        """
        if self.core is None or not self.rank:
            return self
        from weightsmith.graph.backends.torch_singular import separated

        left, values, right = separated(self.core, self.values, self.tensor)
        return Spectrum(self.left @ left, values, right @ self.right, None, self.beyond)


def without_gradient(array: Any) -> Any:
    """The numbers of an array."""
    return array.detach() if getattr(array, "requires_grad", False) else array


def differentiable(matrix: Any, found: Spectrum, kept: Any, tensor: str = "") -> Spectrum:
    """Some of all directions that a matrix was found to have, with gradients where the matrix has any.

    `kept` is a slice or a mask, `tensor` the name that errors give. Directions of value 0 may be missing.
    """
    if not getattr(matrix, "requires_grad", False):
        return found.only(kept)
    return _with_gradients(matrix, found, kept, tensor)


def _with_gradients(matrix: Any, found: Spectrum, kept: Any, tensor: str) -> Spectrum:
    from weightsmith.graph.backends.torch_singular import directions

    if matrix.shape[0] > matrix.shape[1]:
        mirrored = replace(found, left=found.right.T, right=found.left.T)
        turned = _with_gradients(matrix.T, mirrored, kept, tensor)
        core = None if turned.core is None else turned.core.T
        return replace(turned, left=turned.right.T, right=turned.left.T, core=core)
    plain = found.only(kept)
    factors = directions(matrix, found.left, found.values, plain.right, kept, tensor)
    if factors is None:
        return plain
    left, core, values, right = factors
    return Spectrum(left, values, right, core, plain.beyond, tensor)


def arbitrary(result: Any, tensor: str) -> Any:
    """A result that depends on a choice among equals, for which gradients are refused."""
    if not getattr(result, "requires_grad", False):
        return result
    from weightsmith.graph.backends import torch_singular

    return torch_singular.arbitrary(result, tensor)


def orthonormal(linalg: Any, matrix: Any) -> Any:
    """An orthonormal basis of the columns of a matrix; its gradient is that of their span."""
    if not getattr(matrix, "requires_grad", False):
        return linalg.linalg.qr(matrix)[0]
    from weightsmith.graph.backends import torch_singular

    return torch_singular.orthonormal(matrix)


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

    from weightsmith.graph.random import stream_key

    first, second = stream_key(seed, "sketch", name)
    count = math.prod(shape)
    raw = np.random.Philox(key=[first, second]).random_raw(-(-count // 64))
    bits = np.unpackbits(raw.astype("<u8").view(np.uint8))[:count]
    return (bits.astype(np.float64) * 2.0 - 1.0).reshape(shape)


def falling(linalg: Any, values: Any, vectors: Any, rank: int | None) -> tuple[Any, Any]:
    """Eigenvalues and vectors from the largest down, at most `rank` of them."""
    flipped, columns = linalg.flip(values, (0,)), linalg.flip(vectors, (1,))
    return flipped[:rank], columns[:, :rank]
