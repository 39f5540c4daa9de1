"""Singular directions of whole matrices, by three paths with stated errors, and what is made of them.

    exact       LAPACK's divide and conquer in float64; where it does not converge, the symmetric eigenproblem
                [0 R^T; R 0] of the QR factor R, which always does
    gram        eigenvectors of A A^T (or A^T A, whichever is smaller) in float64, three to six times as fast; a
                direction of relative strength s = sigma / sigma_max is off by about 1e-16 / s^2
    randomized  the leading directions from a keyed sketch of signs (Halko, Martinsson and Tropp, 2011); with
                q = power_iterations the error is (1 + small)^(1 / (2 q + 1)) times that of the best rank

Directions weaker than a rank tolerance, or than what rounding of the stored weights makes, are never returned: no
method can give weight to them. Everything returned may differ in sign, and among equal singular values in basis,
between libraries; what the methods make of it does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from weightsmith.errors import NonFiniteError
from weightsmith.graph import (
    Site,
    Spectrum,
    differentiable,
    exact,
    falling,
    gram_spectrum,
    orthonormal,
    signs,
    without_gradient,
)
from weightsmith.methods.parts.matrices import MatrixRules, MatrixView, in_dtype_of, in_float64
from weightsmith.methods.parts.registry import shared
from weightsmith.methods.parts.rounding import (
    EXACT,
    FLOAT64,
    LAPACK,
    Rounding,
    arithmetic_of,
    rounding_of,
)
from weightsmith.tensors import DType

# Relative strength down to which the Gram path is as accurate as float32 numbers are: 2.2e-16 / s^2 < 1e-7.
_GRAM_TOLERANCE = 5e-5
# The largest angle for which small gaps are the reason: it is so little that directions which are no errors do not
# suffer, and errors of weights in 16 bits are larger by themselves.
_LARGEST_TURN = 1e-4
_LARGEST_MIXTURE = 1e-6


def svd_parameter(*, randomized: bool) -> Any:
    """The path by which singular directions are found."""
    paths = ("auto", "exact", "gram", "randomized") if randomized else ("auto", "exact", "gram")
    return shared(
        "auto",
        choices=paths,
        doc="how singular directions are found; auto: gram where its error is below float32 rounding, else exact",
    )


def singular_tolerance_parameter() -> Any:
    """Up to where singular values count as rounding."""
    return shared(
        None,
        low=0.0,
        high=1.0,
        optional=True,
        doc="singular values up to this share of the largest count as 0; none: those that rounding of the stored "
        "weights makes, and up to max(m, n) times the precision (8 times that in float64)",
    )


@dataclass(frozen=True, slots=True)
class SpectralRules(MatrixRules):
    """The parameters of every method that needs singular directions."""

    svd: str = svd_parameter(randomized=False)
    rank_tolerance: float | None = singular_tolerance_parameter()

    def how(self, site: Site) -> Decomposition:
        """The paths and tolerances to decompose the tensor with."""
        return Decomposition(self.svd, self.rank_tolerance, stored=site.stored, tensor=site.name)


@dataclass(frozen=True, slots=True)
class LeadingRules(MatrixRules):
    """The parameters of every method that needs leading singular directions only."""

    svd: str = svd_parameter(randomized=True)
    rank_tolerance: float | None = singular_tolerance_parameter()
    oversampling: int = shared(
        10, low=0, doc="with svd randomized: directions sketched beyond those kept"
    )
    power_iterations: int = shared(
        2,
        low=0,
        high=100,
        doc="with svd randomized: multiplications by A A^T that sharpen the sketch",
    )

    def how(self, site: Site) -> Decomposition:
        """The paths and tolerances to decompose the tensor with."""
        return Decomposition(
            self.svd,
            self.rank_tolerance,
            self.oversampling,
            self.power_iterations,
            (site.seed, site.name),
            site.stored,
            site.name,
        )


@dataclass(frozen=True, slots=True)
class Decomposition:
    """How matrices are decomposed (see the module).

    `key` selects the random sketch, `stored` is the experts' dtype, `tensor` the name that errors give.
    """

    path: str = "auto"
    tolerance: float | None = None
    oversampling: int = 10
    iterations: int = 2
    key: tuple[int, str] = field(default=(0, ""), repr=False)
    stored: DType = DType.FLOAT32
    tensor: str = field(default="", repr=False)

    def roundings(self, linalg: Any, base: Any, deltas: Sequence[Any]) -> list[Rounding]:
        """What rounding of the weights makes of each task vector; nothing where the tolerance is given."""
        if self.tolerance is not None:
            return [EXACT] * len(deltas)
        return [rounding_of(linalg, base, delta, self.stored) for delta in deltas]

    def spectrum(
        self,
        linalg: Any,
        array: Any,
        rank: int | None = None,
        tolerance: float | None = None,
        floor: float = 0.0,
    ) -> Spectrum:
        """The directions of one matrix above the tolerance, and above the value `floor`, at most `rank`, in float64.

        The precision that the default tolerance goes by is that of `array`: float32 or float64. A matrix that is not
        0 has a direction above any tolerance, but it may have none above the floor.
        """
        tolerance = self.cutoff(linalg, array) if tolerance is None else tolerance
        matrix = in_float64(linalg, array)
        largest = constant(abs(matrix).max()) if 0 not in matrix.shape else 0.0
        if largest == 0.0 or rank == 0:
            return _nothing(matrix)
        scaled, basis = matrix / largest, None
        if self.path == "randomized" and rank is not None and self._is_worth(rank, matrix):
            basis = self._range(linalg, scaled, rank)
            scaled = basis.T @ scaled  # [rank + oversampling, inputs]
            found = exact(linalg, without_gradient(scaled))
        else:
            found = self._directions(linalg, scaled, rank, tolerance)
        kept = int((found.values > tolerance * found.values[0]).sum())
        kept = max(kept, 1) if rank is None else max(min(kept, rank), 1)
        kept = min(kept, int((found.values * largest > floor).sum()))
        found = differentiable(scaled, found, slice(kept), self.tensor).times(largest)
        return found if basis is None else found.within(basis)

    def joint_left(
        self, linalg: Any, matrices: Sequence[Any], tolerance: float, floor: float = 0.0
    ) -> tuple[Any, Any]:
        """Left directions and values of matrices side by side, [A_1 .. A_N], put there only where they are tall.

        Those above the floor, or all where none is.
        """
        rows, columns = matrices[0].shape
        largest = max(constant(abs(m).max()) for m in matrices)
        if largest == 0.0 or not self._by_gram(tolerance) or rows > columns * len(matrices):
            # [rows, N columns]
            wide = linalg.concatenate([in_float64(linalg, m) for m in matrices], 1)
            found = self.spectrum(linalg, wide, tolerance=tolerance)
            above = int((found.values > floor).sum())
            found = (found.leading(above) if above else found).separated()
            return found.left, found.values
        gram: Any = 0.0
        for matrix in matrices:
            scaled = in_float64(linalg, matrix) / largest
            gram = gram + scaled @ scaled.T  # [rows, rows]
        values, vectors = linalg.linalg.eigh(without_gradient(gram))
        squares, vectors = falling(linalg, values, vectors, None)
        above = int((squares * largest**2 > floor**2).sum())
        kept = max(1, int((squares > tolerance**2 * squares[0]).sum()))
        kept = min(kept, above) if above else kept
        found = Spectrum(vectors, squares, vectors.T)
        found = differentiable(gram, found, slice(kept), self.tensor).separated()
        return found.left, linalg.sqrt(found.values) * largest

    def _is_worth(self, rank: int, matrix: Any) -> bool:
        """Whether a sketch is much narrower than the matrix."""
        return bool(2 * (rank + self.oversampling) < min(matrix.shape))

    def _by_gram(self, cutoff: float) -> bool:
        return self.path == "gram" or (self.path != "exact" and cutoff >= _GRAM_TOLERANCE)

    def polar(self, linalg: Any, array: Any, tolerance: float, errors: Any = 0.0) -> Any:
        """The nearest matrix with singular values 1 and 0, directions up to the tolerance being dropped: U V^T.

        Where A has full column rank this is A (A^T A)^(-1/2), which has orthonormal columns. `errors` are the
        lengths of each column's errors: directions sigma u v^T that those make are dropped, too, sigma <= ||errors v||.
        """
        found = self.spectrum(linalg, array, tolerance=tolerance)
        made = linalg.sqrt(((found.right * errors) ** 2).sum(1))  # [rank]
        return found.only(found.values > made).polar()

    def polars(
        self, linalg: Any, spectra: Sequence[Spectrum], errors: Sequence[float], tolerance: float
    ) -> tuple[Any, Any]:
        """polar(U) and polar(V)^T of the directions of several matrices beside each other.

        Directions of two matrices that differ by no more than errors turn them are one.
        """
        turns = linalg.concatenate(
            [self.turns(linalg, s, e) for s, e in zip(spectra, errors, strict=True)]
        )
        left = linalg.concatenate([s.left for s in spectra], 1)  # [outputs, all ranks]
        right = linalg.concatenate([s.right for s in spectra])  # [all ranks, inputs]
        return (
            self.polar(linalg, left, tolerance, turns),
            self.polar(linalg, right.T, tolerance, turns).T,
        )

    def turns(self, linalg: Any, spectrum: Spectrum, error: float) -> Any:
        """By how much an error of a matrix, and float64's arithmetic, turn each of its directions.

        An error of strength e turns a direction of value sigma by up to e / gap out of the span of those that are kept,
        the gap being that to the values left out (Wedin, 1972): e / sigma where none is. Where gaps are so small that
        nothing is known of a direction, or nearly so, it is taken for sure up to 1e-4. Only a given rank tolerance
        decides where there is one.
        """
        values = without_gradient(spectrum.values)
        if self.tolerance is not None or not spectrum.rank:
            return values * 0.0
        shape = (spectrum.left.shape[0], spectrum.right.shape[1])
        exact = arithmetic_of(shape, constant(values[0]))
        gaps = abs(values - spectrum.beyond)
        turned = (exact + error) / linalg.clip(gaps, (exact + error) / _LARGEST_TURN, None)
        return linalg.maximum(error / values, turned)

    def mixtures(
        self, linalg: Any, values: Any, shape: tuple[int, int], errors: Sequence[float] = (0.0,)
    ) -> Any:
        """By how much float64's arithmetic mixes directions of neighbouring values (falling) of a matrix.

        Errors of weights count where those are float64, too. A mixture by more than 1e-6 is of values that are equal.
        """
        if self.tolerance is not None or not values.shape[0]:
            return values * 0.0
        values = without_gradient(values)
        exact = arithmetic_of(shape, constant(values[0]))
        exact += max(errors) if self.stored is DType.FLOAT64 else 0.0
        below = values - linalg.concatenate([values[1:], values[:1] * 0.0])
        above = linalg.concatenate([values[:1], below[:-1]])
        return exact / linalg.clip(linalg.minimum(below, above), exact / _LARGEST_MIXTURE, None)

    def cutoff(self, linalg: Any, array: Any) -> float:
        """The share of the largest singular value up to which a direction counts as rounding."""
        if self.tolerance is not None:
            return self.tolerance
        epsilon = max(float(linalg.finfo(array.dtype).eps), LAPACK * FLOAT64)
        return min(1.0, epsilon * float(max(array.shape)))

    def _directions(self, linalg: Any, matrix: Any, rank: int | None, cutoff: float) -> Spectrum:
        """The strongest directions, at least `rank` of them; all where gradients ask for what is left out, too."""
        plain = without_gradient(matrix)
        if self._by_gram(cutoff):
            return gram_spectrum(linalg, plain, None if plain is not matrix else rank)
        return exact(linalg, plain)

    def _range(self, linalg: Any, matrix: Any, rank: int) -> Any:
        """An orthonormal basis of a sketch of the columns, sharpened by power iterations."""
        width = rank + self.oversampling
        # [outputs, width], as the basis is
        sketch = matrix @ _like(linalg, matrix, signs((matrix.shape[1], width), *self.key))
        basis = orthonormal(linalg, sketch)
        for _ in range(self.iterations):
            basis = orthonormal(linalg, matrix @ orthonormal(linalg, matrix.T @ basis))
        return basis


@dataclass(frozen=True, slots=True)
class ByMatrix:
    """A whole-array function that does one thing to every matrix of a view.

    `function(linalg, matrices)` takes one matrix of each input (in work precision, shape (outputs, inputs)) and
    returns a matrix of the same shape. Raises NonFiniteError where an input holds NaN or infinity.
    """

    function: Callable[[Any, list[Any]], Any]
    view: MatrixView = field(repr=False)
    tensor: str = field(repr=False)

    def __call__(self, linalg: Any, *arrays: Any) -> Any:
        """The array of the stored shape, in the dtype of the inputs."""
        if 0 in arrays[0].shape:
            return arrays[0]
        require_finite(linalg, arrays, self.tensor)
        stacks = [self.view.split(array) for array in arrays]
        merged = [
            in_dtype_of(arrays[0], self.function(linalg, list(matrices)))
            for matrices in zip(*stacks, strict=True)
        ]
        return self.view.join(linalg, merged)


def blockwise(
    linalg: Any,
    columns: Any,
    spectra: Sequence[Spectrum],
    function: Callable[[Spectrum, Any], Any],
) -> Any:
    """A function (`Spectrum.scaled` or `Spectrum.paired`) of the columns that go on with each of several spectra."""
    blocks, start = [], 0
    for spectrum in spectra:
        blocks.append(function(spectrum, columns[:, start : start + spectrum.rank]))
        start += spectrum.rank
    return linalg.concatenate(blocks, 1)


def constant(entry: Any) -> float:
    """One number of an array, as a constant: gradients do not flow through it."""
    return float(entry.detach() if hasattr(entry, "detach") else entry)


def require_finite(linalg: Any, arrays: Sequence[Any], tensor: str) -> None:
    """Raise NonFiniteError for NaN or infinity, which have no singular values."""
    if not all(bool(linalg.isfinite(array).all()) for array in arrays):
        raise NonFiniteError(
            f"The task vector of {tensor!r} holds NaN or infinity and has no singular values; "
            "merge this tensor with another method, or repair its checkpoint."
        )


def _nothing(matrix: Any) -> Spectrum:
    empty = matrix.reshape(-1)[:0]
    m, n = matrix.shape
    return Spectrum(empty.reshape((m, 0)), empty, empty.reshape((0, n)))


def _like(linalg: Any, reference: Any, array: Any) -> Any:
    """A numpy array where the reference lives."""
    if not hasattr(reference, "device") or not hasattr(reference, "to"):
        return array
    return linalg.from_numpy(array).to(reference.device)
