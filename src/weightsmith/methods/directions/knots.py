"""KnOTS: merge task vectors in the joint singular basis that aligns them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from weightsmith.graph import Site, Value, whole, whole_parts, without_gradient
from weightsmith.methods.directions.iso import frobenius
from weightsmith.methods.parts.matrices import MatrixView, in_dtype_of, in_float64
from weightsmith.methods.parts.registry import Base, FormerPreset, method, shared
from weightsmith.methods.parts.rounding import EXACT, noise_side_by_side, shares_alike
from weightsmith.methods.parts.spectra import (
    ByMatrix,
    Decomposition,
    SpectralRules,
    constant,
    require_finite,
)
from weightsmith.methods.parts.task_vectors import (
    density_parameter,
    keep_at_random,
    keep_largest,
    lambda_parameter,
    merge_vectors,
    normalize_parameter,
    task_vectors,
    weight_parameter,
    zero_sum_parameter,
)

# Coefficients below this many units of rounding of a task's largest are rounding themselves.
_ROUNDING = 8.0


@method(
    "knots",
    title="KnOTS (joint singular basis)",
    paper="Stoica et al., ICLR 2025, arXiv:2410.19735",
    base=Base.REQUIRED,
    presets={"scaled_basis": {"basis": "scaled"}},
    former_presets={
        "core_space": FormerPreset(
            "scaled_basis",
            "it merges the V_i of KnOTS and not the matrices of the core space of Panariello et al. (2025), which "
            "adapters have with `adapter: {space: core}`",
        )
    },
    cost="O(N m^2 n)",
    generalises=("task_arithmetic",),
)
@dataclass(frozen=True, slots=True)
class Knots(SpectralRules):
    """Task vectors merged by the coefficients of their rows and columns in one common basis.

        [tau_1 .. tau_N] = U S [V_1 .. V_N]^T  (side by side);   T_i = S V_i^T = U^T tau_i
        theta = theta_0 + lambda U T,   T = inner merge of T_1 .. T_N

    The inner merge is that of ties (each T_i trimmed to the share `density` of its elements, signs elected, mean of
    those that agree), of dare_linear or dare_ties (elements kept with probability `density` and divided by it), or
    linear, which is task arithmetic exactly, whatever the basis. The share counts coefficients over the whole model or
    each tensor (scope), of which each direction of the common basis has one for every input, zeros included, as in the
    authors' code. Directions that the rounding of stored weights makes are none, unless rank_tolerance is given. axis:
    inputs stacks task vectors on top of each other instead. With basis "scaled" (preset scaled_basis) the V_i are
    merged and S is part of the basis; that is not the core space of adapters, which is a space and no method. Task
    vectors that are no matrix are averaged (others). The sign of each basis vector is arbitrary, and no result depends
    on it; among equal singular values the basis is arbitrary, and results do. The authors' runs use density .2 and
    lambda .6 for ViT-B/32. O(N m^2 n) time; about N / 2 + 5 matrices in float64.
    """

    weight: tuple[float, ...] = weight_parameter()
    merger: str = shared(
        "ties",
        choices=("ties", "linear", "dare_linear", "dare_ties"),
        doc="how coefficients are merged",
    )
    density: tuple[float, ...] = density_parameter(
        0.2, "share of the coefficients that is kept, or the probability to be"
    )
    normalize: str = normalize_parameter("absolute")
    zero_sum: str = zero_sum_parameter(majority=True)
    scope: str = shared(
        "model", choices=("model", "tensor"), doc="over what the share of the trim is counted"
    )
    axis: str = shared(
        "outputs",
        choices=("outputs", "inputs"),
        doc="which side of the matrices has the common basis",
    )
    basis: str = shared(
        "orthonormal",
        choices=("orthonormal", "scaled"),
        doc="whether singular values belong to the coefficients or to the basis",
    )
    scale: float = lambda_parameter()

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Merge the coefficients and add what they stand for to the base."""
        base, deltas = task_vectors(base, experts)
        view = self.view(site)
        if view is None:
            merged = self.without_matrix(deltas, self.weight, site)
            return base if merged is None else base + merged * self.scale
        if self.merger == "linear":
            return base + self._merged(deltas, None, site) * self.scale
        joint = JointBasis(
            self.axis == "inputs", self.basis == "scaled", self.how(site), view, site.name
        )
        count = len(deltas)
        places, *parts = whole_parts(joint, *deltas, base, parts=1 + count + joint.blocks(count))
        signed = self.zero_sum if self.merger.endswith("ties") else None
        merged = self._merged(self._sparse(parts[:count], places, site), signed, site)
        rebuild = ByMatrix(FromBasis(self.axis == "inputs"), view, site.name)
        return base + whole(rebuild, merged, *parts[count:]) * self.scale

    def _sparse(self, coefficients: Sequence[Value], places: Value, site: Site) -> list[Value]:
        if self.merger == "ties":
            return [
                keep_largest(
                    c, density, site.over(self.scope, "trim", i, density), site, among=places > 0.0
                )
                for i, (c, density) in enumerate(zip(coefficients, self.density, strict=True))
            ]
        return [
            keep_at_random(c, density, site.uniform(i), "probability")
            for i, (c, density) in enumerate(zip(coefficients, self.density, strict=True))
        ]

    def _merged(self, vectors: Sequence[Value], zero_sum: str | None, site: Site) -> Value:
        return merge_vectors(
            vectors, self.weight, site=site, normalize=self.normalize, zero_sum=zero_sum
        )


@dataclass(frozen=True, slots=True)
class JointBasis:
    """Where coefficients are (1, elsewhere 0), T_1 .. T_N, and U cut into blocks of columns, all of the tensor's shape:
    rows and columns missing are zero.
    """

    turned: bool
    scaled: bool
    how: Decomposition
    view: MatrixView = field(repr=False)
    tensor: str = field(repr=False)

    def blocks(self, count: int) -> int:
        """How many matrices the columns of U take up."""
        sides = [block[::-1] if self.turned else block for block in self.view.blocks]
        return max(
            max(1, -(-min(rows, columns * count) // max(1, columns))) for rows, columns in sides
        )

    def __call__(self, linalg: Any, *arrays: Any) -> list[Any]:
        """One array for each part, in the dtype of the inputs."""
        count = len(arrays) - 1
        blocks = self.blocks(count)
        if 0 in arrays[0].shape:
            return [arrays[0]] * (1 + count + blocks)
        require_finite(linalg, arrays, self.tensor)
        groups = zip(*(self.view.split(array) for array in arrays), strict=True)
        found = [self._parts(linalg, matrices, blocks) for matrices in groups]
        return [self.view.join(linalg, list(part)) for part in zip(*found, strict=True)]

    def _parts(self, linalg: Any, matrices: Sequence[Any], blocks: int) -> list[Any]:
        *sides, base = [m.T if self.turned else m for m in matrices]
        rows, columns = sides[0].shape  # (outputs, inputs), or turned
        cutoff = self.how.cutoff(linalg, sides[0])
        roundings = self.how.roundings(linalg, base, sides)
        floor = noise_side_by_side(roundings, shares_alike(sides, roundings))
        left, values = self.how.joint_left(linalg, sides, cutoff, floor)  # [rows, rank], [rank]
        if values.shape[0] and constant(values[0]) <= floor:
            roundings = [EXACT] * len(sides)
        noise = _ROUNDING * float(linalg.finfo(matrices[0].dtype).eps)
        strengths = [r.strength for r in roundings]
        mixed = self.how.mixtures(linalg, values, (rows, columns * len(sides)), strengths)
        places = linalg.ones_like(sides[0][: values.shape[0]])  # [rank, columns]
        pieces = [_padded(linalg, places, rows, 0)]
        for task, rounding in zip(sides, roundings, strict=True):
            images = left.T @ in_float64(linalg, task)  # [rank, columns]
            images = _without_noise(linalg, images, noise, rounding.row_length, mixed)
            images = images / values[:, None] if self.scaled else images
            pieces.append(in_dtype_of(matrices[0], _padded(linalg, images, rows, 0)))
        left = left * values if self.scaled else left
        left = _padded(linalg, left, blocks * columns, 1)  # [rows, blocks columns]
        left = in_dtype_of(matrices[0], left)
        pieces += [left[:, i * columns : (i + 1) * columns] for i in range(blocks)]
        return [p.T if self.turned else p for p in pieces]


def _without_noise(linalg: Any, images: Any, noise: float, length: float, mixed: Any) -> Any:
    """The coefficients, rounding replaced by 0: in a direction that a task lacks it must not take part in elections.

    A direction that a task lacks has coefficients no longer than errors of its stored weights make them (`length`), and
    what `mixed` says it has of its neighbours.
    """
    if 0 in images.shape:
        return images
    plain = without_gradient(images)
    sizes = abs(plain)
    lengths = linalg.sqrt((plain * plain).sum(1))
    is_there = lengths > length + mixed * frobenius(linalg, plain)
    return linalg.where((sizes > noise * sizes.max()) & is_there[:, None], images, 0.0)


def _padded(linalg: Any, matrix: Any, size: int, axis: int) -> Any:
    """The matrix with zeros behind it so that an axis has `size` places."""
    missing = size - matrix.shape[axis]
    if missing == 0:
        return matrix
    shape = (missing, matrix.shape[1]) if axis == 0 else (matrix.shape[0], missing)
    zeros = getattr(matrix, "new_zeros", linalg.zeros)(shape)
    return linalg.concatenate([matrix, zeros], axis)


@dataclass(frozen=True, slots=True)
class FromBasis:
    """U T."""

    turned: bool

    def __call__(self, linalg: Any, matrices: list[Any]) -> Any:
        """Matrix of the same shape, in float64."""
        sides = [in_float64(linalg, m.T if self.turned else m) for m in matrices]
        coefficients = sides[0]  # [rows, columns]
        left = linalg.concatenate(sides[1:], 1)  # [rows, blocks columns]
        inner = min(left.shape[1], coefficients.shape[0])
        product = left[:, :inner] @ coefficients[:inner]
        return product.T if self.turned else product
