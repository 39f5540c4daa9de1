"""Factors as a module of torch has them: what goes in comes first, what comes out last, whatever the base stores."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from weightsmith.deltas import Matrix
from weightsmith.errors import CompatibilityError, UsageError
from weightsmith.lora.low_rank_adapters import Factors, LowRankAdapter
from weightsmith.tensors import DType, fits, shown

WEIGHT = ".weight"


@dataclass(frozen=True, slots=True, eq=False)
class ModuleFactors:
    """scale * up @ down for one module.

    `down` is rank x inputs, with the kernel's axes behind them for a convolution, `up` outputs x rank. For an
    embedding the inputs are its tokens. `magnitude` is DoRA's: a vector of one number for each output, or a matrix of
    one row with one for each input (LyCORIS' older way).
    """

    module: str
    factors: Factors
    down: Matrix
    up: Matrix
    scale: float
    magnitude: Matrix | None = None

    @property
    def rank(self) -> int:
        """Rows of `down`."""
        return int(self.down.shape[0])

    @property
    def alpha(self) -> float:
        """What the dialects write for the scale: scale = alpha / rank."""
        return self.scale * self.rank

    @property
    def kernel(self) -> tuple[int, ...]:
        """Lengths of a convolution's kernel; empty for anything else."""
        return tuple(self.down.shape[2:])

    @property
    def is_by_input(self) -> bool:
        """Whether the magnitude has a number for each input."""
        return self.magnitude is not None and self.magnitude.ndim > 1

    def wide_up(self) -> Matrix:
        """`up` with the axes of a convolution, of length 1."""
        return self.up.reshape(*self.up.shape, *(1 for _ in self.kernel))


def module_factors(
    adapter: LowRankAdapter, magnitudes: Mapping[str, Matrix] | None = None
) -> dict[str, ModuleFactors]:
    """The factors of all whole weights by their module, sorted; those of single experts are left out.

    A scale of zero or below, which alpha cannot say everywhere, goes into `up`. Raises CompatibilityError for a
    target that is no module's weight, and UsageError for a change of rank 0.
    """
    found = {}
    for factors in sorted(adapter.factors.values(), key=lambda f: f.key):
        if factors.part is not None:
            continue
        module = factors.target.removesuffix(WEIGHT)
        if module == factors.target or not module:
            raise CompatibilityError(
                f"{shown(factors.target)} is not the weight of a module, and only those can have an adapter in a "
                "file; leave it out of the selection."
            )
        magnitude = None if magnitudes is None else magnitudes.get(factors.target)
        found[module] = _of(module, factors, magnitude)
    return found


def _of(module: str, factors: Factors, magnitude: Matrix | None) -> ModuleFactors:
    change, shape = factors.change, factors.shape
    down, up, scale = change.right, change.left, change.scale
    if factors.input_first or factors.kind == "embedding":
        down, up = change.left.T, change.right.T
    if change.rank < 1:
        raise UsageError(
            f"The change of {shown(factors.target)} has rank 0: leave that tensor out."
        )
    if factors.kind == "conv":
        down = down.reshape(change.rank, *shape[1:])
    if scale <= 0.0:
        up, scale = up * scale, 1.0
    return ModuleFactors(module, factors, down, up, scale, magnitude)


def with_scale(found: ModuleFactors, scale: float, dtype: DType) -> tuple[ModuleFactors, DType]:
    """The same change with another scale, and the dtype to store it in.

    That is `dtype`, or float32 where `dtype` would lose digits of factors that are in it now.
    """
    if found.scale == scale:
        return found, dtype
    up = found.up * (found.scale / scale)
    is_lossless = fits(up, dtype) or not fits(found.up, dtype)
    return replace(found, up=up, scale=scale), dtype if is_lossless else DType.FLOAT32


def most_common(numbers: Iterable[float]) -> float:
    """The number that occurs most often; of several the smallest."""
    counts = collections.Counter(numbers)
    return min(counts, key=lambda number: (-counts[number], number))


def plain(number: float) -> float:
    """An integer where the number is one, as configurations write alpha."""
    return int(number) if float(number).is_integer() else float(number)
