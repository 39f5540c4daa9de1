"""RegMean: the linear map that does on every task's inputs what that task's own map does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from weightsmith.errors import CompatibilityError
from weightsmith.graph import Site, Value, whole
from weightsmith.methods.averages.linear import normalized, weighted_average
from weightsmith.methods.parts.gram import cutoff_of, number, rank_tolerance_parameter, solve
from weightsmith.methods.parts.gram_matrices import require_gram
from weightsmith.methods.parts.matrices import (
    MatrixRules,
    MatrixView,
    WideMatrix,
    in_dtype_of,
    in_float64,
)
from weightsmith.methods.parts.registry import Base, method, per_expert, shared
from weightsmith.methods.parts.spectra import require_finite
from weightsmith.tensors import DType

# Elements that are scaled at a time.
_BLOCK = 1 << 15


@method(
    "regmean",
    title="RegMean (regression mean)",
    paper="Jin et al., ICLR 2023, arXiv:2212.09849",
    base=Base.IGNORED,
    statistics=("gram",),
    cost="O(N m n^2 + n^3)",
    generalises=("linear",),
    presets={"fusionbench": {"alpha": 0.95}},
)
@dataclass(frozen=True, slots=True)
class RegMean:
    """Solution of the least-squares problem that keeps every expert's outputs on its own inputs.

        W = A + (sum_i w_i (W_i - A) G~_i) (sum_i w_i G~_i + rho tr/n I)^+        A = sum_i w_i W_i / sum_i w_i
        G_i = X_i^T X_i;   G~_i = G_i with off-diagonal elements times alpha

    Weights are (outputs, inputs), Gram matrices (inputs, inputs), both float64 in the solve, O(N m n^2 + n^3). The
    default alpha = 0.9 is the paper's; 1 leaves the Gram matrices as they are, 0 keeps their diagonals. The authors
    invert the sum; here directions that no input reached (dead inputs, fewer samples than inputs) stay at the mean A
    instead of exploding, and so does everything under a ridge rho. Stacks of experts take one Gram matrix each, or
    share one; kernels are matrices (outputs, all others); GPT-2's Conv1D is transposed. Whatever has no Gram
    matrix is averaged: embeddings, norms, biases. With matrices that `weightsmith collect gram RECIPE` takes behind the
    layers that are merged already it is RegMean++ (arXiv:2508.03121). Raises NonFiniteError for NaN or infinities, and
    CompatibilityError for a Gram matrix that is not symmetric or has a negative diagonal.
    """

    weight: tuple[float, ...] = per_expert(1.0, low=0.0, doc="factor of each Gram matrix")
    alpha: float = shared(0.9, low=0.0, high=1.0, doc="factor of off-diagonal elements")
    ridge: float = shared(
        0.0, low=0.0, doc="added to the diagonal, as a share of the mean eigenvalue"
    )
    orientation: str = shared(
        "auto",
        choices=("auto", "output_first", "input_first"),
        doc="axes of stored matrices; auto: as inferred from the checkpoint (input first for GPT-2's Conv1D)",
    )
    rank_tolerance: float | None = rank_tolerance_parameter()

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Solve for every matrix; the base plays no part."""
        weights = normalized(self.weight)
        if not site.statistics:
            return weighted_average(experts, weights)
        view = MatrixRules(
            others="average",
            embeddings="spectral",
            stacks="slices",
            kernels="matrix",
            fused="whole",
            orientation=self.orientation,
            exempt="",
        ).view(site)
        width = site.statistics[0].shape[-1]
        if view is None or view.inputs != width:
            raise CompatibilityError(
                f"{site.name!r} of shape {list(site.shape)} has {view.inputs if view else 'no'} inputs, but its Gram "
                f"matrix is for {width}; set `orientation:`, or collect it again."
            )
        function = Regression(
            tuple(weights),
            self.alpha,
            self.ridge,
            self.rank_tolerance,
            view,
            site.name,
            tuple(s.stored for s in site.statistics),
            site.labels,
        )
        return whole(function, *experts, *(s.value for s in site.statistics))


@dataclass(frozen=True, slots=True)
class Regression:
    """The regression mean of matrices, given after each other with their Gram matrices."""

    weights: tuple[float, ...]
    alpha: float
    ridge: float
    tolerance: float | None
    view: MatrixView = field(repr=False)
    tensor: str = field(repr=False)
    stored: tuple[DType, ...] = field(repr=False)
    labels: tuple[str, ...] = field(repr=False)

    def __call__(self, linalg: Any, *arrays: Any) -> Any:
        """The array of the stored shape and dtype."""
        experts, grams = arrays[: len(self.weights)], arrays[len(self.weights) :]
        if 0 in experts[0].shape:
            return experts[0]
        require_finite(linalg, arrays, self.tensor)
        for i, (gram, stored) in enumerate(zip(grams, self.stored, strict=True)):
            whose = f"model {self.labels[i]!r}" if self.labels else f"expert {i}"
            require_gram(linalg, gram, stored, f"The Gram matrix of {self.tensor!r} of {whose}")
        stacks = [self.view.split(expert) for expert in experts]
        merged = []
        for group, matrices in enumerate(zip(*stacks, strict=True)):
            own = [gram if len(gram.shape) == 2 else gram[group] for gram in grams]
            cutoff = cutoff_of(linalg, own[0], self.tolerance)
            merged.append(in_dtype_of(experts[0], self._merged(linalg, matrices, own, cutoff)))
        return self.view.join(linalg, merged)

    def _merged(
        self, linalg: Any, matrices: Sequence[Any], grams: Sequence[Any], cutoff: float
    ) -> Any:
        first = in_float64(linalg, matrices[0])
        if len(matrices) == 1:
            return first
        room = WideMatrix()
        gram = room.hold(linalg, grams[0]) * self.weights[0]
        residual, to_mean = None, None
        # Around the first matrix, which spares a product, and keeps what all share exact.
        for matrix, one, weight in zip(matrices[1:], grams[1:], self.weights[1:], strict=True):
            gap = matrix - first  # [outputs, inputs]
            wide = room.hold(linalg, one)  # [inputs, inputs]
            residual = _added(residual, self._product(linalg, gap, wide), weight)
            to_mean = _added(to_mean, gap, weight)
            _add_scaled(gram, wide, weight)
        self._damp(gram)
        if self.ridge > 0.0:
            residual = residual - to_mean @ gram
            diagonal = linalg.diagonal(gram)
            mean_eigenvalue = number(diagonal.sum()) / gram.shape[0]
            gram = gram + linalg.diag(linalg.ones_like(diagonal)) * (self.ridge * mean_eigenvalue)
            return first + to_mean + solve(linalg, residual, gram, cutoff, tensor=self.tensor)
        return first + solve(linalg, residual, gram, cutoff, to_mean, tensor=self.tensor)

    def _product(self, linalg: Any, gap: Any, gram: Any) -> Any:
        """gap G~, for which G~ need not be made."""
        product = gap @ gram
        if self.alpha == 1.0:
            return product
        product *= self.alpha
        product += gap * (linalg.diagonal(gram) * (1.0 - self.alpha))
        return product

    def _damp(self, gram: Any) -> None:
        """Multiply what is off the diagonal by alpha, in place."""
        if self.alpha < 1.0:
            diagonal = gram.reshape(-1)[:: gram.shape[0] + 1]
            rest = diagonal * (1.0 - self.alpha)
            gram *= self.alpha
            diagonal += rest


def _added(total_of: Any, matrix: Any, factor: float) -> Any:
    """total_of + matrix * factor, in the place of either; the first `total_of` is None."""
    matrix *= factor
    if total_of is None:
        return matrix
    total_of += matrix
    return total_of


def _add_scaled(total_of: Any, matrix: Any, factor: float) -> None:
    """total_of += matrix * factor, rows by rows, so that the product stays in a core's cache."""
    rows = max(1, _BLOCK // max(1, int(matrix.shape[1])))
    for start in range(0, int(matrix.shape[0]), rows):
        block = slice(start, start + rows)
        total_of[block] += matrix[block] * factor
