"""DC-Merge: task vectors of even strength, merged by a sparse election in one orthogonal cover of their directions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.graph import Site, Spectrum, Value, floor_of_share, whole, without_gradient
from weightsmith.methods.directions.tsv import strength_parameter
from weightsmith.methods.parts.gram import total
from weightsmith.methods.parts.matrices import in_float64
from weightsmith.methods.parts.named_roles import TEXT_PROJECTION
from weightsmith.methods.parts.registry import Base, method, shared
from weightsmith.methods.parts.spectra import ByMatrix, Decomposition, LeadingRules, constant
from weightsmith.methods.parts.task_vectors import lambda_parameter, task_vectors

# Numbers of a core that differ by less of the largest are equal, and sums below it have no sign.
_ROUNDING = 1e-12


@method(
    "dc_merge",
    title="DC-Merge (directional consistency)",
    paper="DC-Merge, CVPR 2026, arXiv:2603.06242",
    base=Base.REQUIRED,
    presets={
        "full": {"smoothing": "none", "exempt": TEXT_PROJECTION},
        "lora": {"rank": 16},
    },
    about_presets={
        "full": "the authors' script for full fine-tunes of CLIP",
        "lora": "their script for adapters of rank 16",
    },
    cost="O(N m n min(m, n))",
)
@dataclass(frozen=True, slots=True)
class DirectionalConsistency(LeadingRules):
    """Leading directions of all tasks, evened out and merged in a common orthogonal cover.

        w_i tau_i ~ U_i S_i V_i^T of rank r;   C_U = polar([U_1 .. U_N]), C_V = polar([V_1 .. V_N])
        M_i = C_U^T (U_i smooth(S_i) V_i^T) C_V, its floor(density R^2) largest numbers, at least 1
        M = mean of the M_i whose sign is that of their sum, element by element; 0 off the N blocks of r x r
        theta = theta_0 + lambda C_U M C_V^T

    r is max(1, floor(min(m, n) / N)) unless `rank` says otherwise, R = N r. smooth(S) is mean(S) in every direction
    (average); linear falls from min(rho, S_1 / S_r) to 1 with the same sum; the authors' script for full fine-tunes
    leaves S as it is (preset full). consensus "sum" adds the M_i up instead, as a port does. density 0.001 and rho 5
    are those of the code. Task vectors that are no matrix are averaged (others).

    Directions that rounding makes are none (see tsv_m): R and the blocks count those that there are, and a task vector
    without any takes no part. The sign of a direction does not matter; among equal singular values the basis is
    arbitrary, and the result with it. Sums of M_i that cancel but for rounding have no sign. O(N m n min(m, n)) time;
    N + 5 matrices in float64. Raises NonFiniteError for a matrix with NaN or infinities.
    """

    weight: tuple[float, ...] = strength_parameter()
    rank: int | None = shared(
        None, low=1, optional=True, doc="directions of each task; none: min(m, n) / N"
    )
    smoothing: str = shared(
        "average",
        choices=("average", "linear", "none"),
        doc="how a task's singular values are evened out",
    )
    rho: float = shared(5.0, low=1.0, doc="with smoothing linear: largest over smallest value")
    density: float = shared(
        0.001, low=0.0, high=1.0, doc="share of the numbers of a core matrix that is kept"
    )
    consensus: str = shared(
        "ties",
        choices=("ties", "sum"),
        doc="how core matrices are merged: mean of what agrees in sign, or sum",
    )
    scale: float = lambda_parameter()

    def combine(self, base: Value | None, experts: Sequence[Value], site: Site) -> Value:
        """Add what was merged in the cover to the base."""
        base, deltas = task_vectors(base, experts)
        view = self.view(site)
        if view is None:
            merged = self.without_matrix(deltas, self.weight, site)
            return base if merged is None else base + merged * self.scale
        core = Core(self.density, self.consensus == "sum")
        function = Covered(self.weight, self.rank, self.smoothing, self.rho, core, self.how(site))
        return base + whole(ByMatrix(function, view, site.name), *deltas, base) * self.scale


@dataclass(frozen=True, slots=True)
class Core:
    """How the M_i of one matrix become M."""

    density: float
    is_sum: bool

    def merged(self, linalg: Any, cores: Sequence[Any], precision: float) -> Any:
        """M before anything is set to zero off its blocks; numbers below the precision times the largest are none."""
        kept = [self._largest(linalg, core) for core in cores]
        if self.is_sum:
            return total(kept)
        sums = without_gradient(total(kept))
        noise = precision * max(constant(abs(core).max()) for core in kept)
        signs = linalg.where(abs(sums) > noise, linalg.sign(sums), 0.0)
        agrees = [(linalg.sign(without_gradient(core)) == signs) & (signs != 0) for core in kept]
        count = total([linalg.where(a, 1.0, 0.0) for a in agrees])
        merged = total([linalg.where(a, c, 0.0) for a, c in zip(agrees, kept, strict=True)])
        return merged / linalg.where(count > 0, count, 1.0)

    def _largest(self, linalg: Any, core: Any) -> Any:
        sizes = abs(without_gradient(core))
        flat = sizes.reshape(-1)
        wanted = max(1, floor_of_share(self.density, int(flat.shape[0])))
        least = flat[linalg.argsort(-flat)[wanted - 1]]
        return linalg.where(sizes >= least * (1.0 - _ROUNDING), core, 0.0)


@dataclass(frozen=True, slots=True)
class Covered:
    """Task vectors of one matrix, and its base, which says how they were rounded -> their merge in the cover."""

    weights: tuple[float, ...]
    rank: int | None
    smoothing: str
    rho: float
    core: Core
    how: Decomposition

    def __call__(self, linalg: Any, matrices: list[Any]) -> Any:
        """Matrix of the same shape, in float64."""
        *matrices, base = matrices
        rank = self.rank or max(1, min(base.shape) // len(matrices))
        found, weights, errors = [], [], []
        roundings = self.how.roundings(linalg, base, matrices)
        for matrix, weight, rounding in zip(matrices, self.weights, roundings, strict=True):
            spectrum = self.how.spectrum(linalg, matrix, rank, floor=rounding.strength)
            if weight and spectrum.rank:
                found.append(spectrum.separated())
                weights.append(weight)
                errors.append(rounding.strength)
        if not found:
            return in_float64(linalg, matrices[0]) * 0.0
        cutoff = self.how.cutoff(linalg, matrices[0])
        left, right = self.how.polars(linalg, found, errors, cutoff)  # [m, R], [R, n]
        cores = [
            (left.T @ (one.left * self.smoothed(linalg, one))) @ (one.right @ right.T) * weight
            for one, weight in zip(found, weights, strict=True)
        ]
        precision = max(8.0 * float(linalg.finfo(base.dtype).eps), _ROUNDING)
        merged = self.core.merged(linalg, cores, precision)
        return (left @ (merged * _blocks(linalg, merged, found))) @ right

    def smoothed(self, linalg: Any, found: Spectrum) -> Any:
        """The strength of each direction."""
        values = found.values
        if self.smoothing == "none":
            return values
        if self.smoothing == "average" or found.rank == 1:
            return values * 0.0 + values.sum() / found.rank
        ratio = linalg.clip(values[0] / values[-1], None, self.rho)
        steps = linalg.cumsum(linalg.ones_like(values), 0) - 1.0
        shares = ratio + (1.0 - ratio) * (steps / (found.rank - 1))
        return values.sum() * shares / shares.sum()


def _blocks(linalg: Any, like: Any, spectra: Sequence[Spectrum]) -> Any:
    """1 where row and column are of one task, else 0."""
    mask = linalg.zeros_like(without_gradient(like))
    start = 0
    for spectrum in spectra:
        mask[start : start + spectrum.rank, start : start + spectrum.rank] = 1.0
        start += spectrum.rank
    return mask
