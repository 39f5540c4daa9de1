"""The units of a network whose statistics can be corrected, and what a correction makes of the weights behind them.

A batch norm is given the moments of what it reads. A linear map with a bias is followed by s (y - mean) + goal, folded
into its rows and its bias.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from weightsmith.errors import CompatibilityError, UsageError
from weightsmith.live import LiveModel, Passage, as_torch
from weightsmith.statistics.forward_sums import by_channel, pieces
from weightsmith.statistics.linear_maps import flat_rows, linear_maps

if TYPE_CHECKING:
    from torch import Tensor

_FACTORS = "::factors:"
# A variance that is no more than this share of the squared mean is what rounding makes of a constant.
_CONSTANT = 1e-12


class Moments:
    """Count, mean and variance over rows [N, C] of channels, summed up in float64."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Add rows [N, C]."""
        self.count += len(rows)
        for part in pieces(rows):
            total, squares = part.sum(0), part.square_().sum(0)
            self._sum = total if self._sum is None else self._sum + total
            self._squares = squares if self._squares is None else self._squares + squares

    @property
    def mean(self) -> Tensor:
        """The means, [C] in float64."""
        assert self._sum is not None
        return self._sum / self.count

    @property
    def variance(self) -> Tensor:
        """The mean squared distances from the means, [C] in float64."""
        assert self._squares is not None
        return (self._squares / self.count - self.mean.square()).clamp(min=0)


@dataclass(frozen=True, slots=True, eq=False)
class UnitGoal:
    """The means and deviations, [C] in float64, that the outputs of a map are to have."""

    mean: Tensor
    deviation: Tensor


class Unit(Protocol):
    """A module whose channels are corrected together."""

    @property
    def path(self) -> str:
        """The path of the module."""
        ...

    @property
    def tensors(self) -> tuple[str, ...]:
        """The stored tensors that a correction changes."""
        ...

    def rows(self, passage: Passage) -> Tensor:
        """The rows [N, C] whose moments count, of one call."""
        ...

    def correction(self, model: LiveModel, moments: Moments) -> dict[str, Tensor]:
        """What a file of kind repair has of it, given the moments that it has now."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class BatchNorm:
    """A batch norm, whose running statistics become those of what it reads."""

    path: str
    mean: str
    variance: str

    @property
    def tensors(self) -> tuple[str, ...]:
        """Running mean and variance."""
        return (self.mean, self.variance)

    def rows(self, passage: Passage) -> Tensor:
        """What it reads."""
        return by_channel(passage.inputs[0].detach(), 1)

    def correction(self, model: LiveModel, moments: Moments) -> dict[str, Tensor]:
        """Mean and variance, the latter over N - 1 as torch has it; raises UsageError for a single row."""
        if moments.count < 2:
            raise UsageError(
                f"{self.path} of {model.name!r} reads one row of the data, which has no variance; give more items."
            )
        unbiased = moments.variance * (moments.count / (moments.count - 1))
        return {self.mean: moments.mean.float(), self.variance: unbiased.float()}


@dataclass(frozen=True, slots=True, eq=False)
class RescaledMap:
    """A linear map [outputs, ...] with a bias, whose outputs get the moments of a goal."""

    path: str
    weight: str
    bias: str
    axis: int
    goal: UnitGoal | None = None

    @property
    def tensors(self) -> tuple[str, ...]:
        """Weight and bias."""
        return (self.weight, self.bias)

    def rows(self, passage: Passage) -> Tensor:
        """What it gives."""
        return by_channel(passage.output.detach(), self.axis)

    def correction(self, model: LiveModel, moments: Moments) -> dict[str, Tensor]:
        """A factor for each row, and the bias; what is constant over the data keeps its scale and gets the mean."""
        import torch

        assert self.goal is not None
        mean, variance = moments.mean, moments.variance
        is_constant = variance <= _CONSTANT * mean.square()
        deviation = torch.where(is_constant, torch.ones_like(variance), variance.sqrt())
        wanted = torch.where(is_constant, torch.ones_like(variance), self.goal.deviation)
        factors = (wanted / deviation).float()
        bias = as_torch(model.source.tensors[self.bias]).to(mean.device).double()
        corrected = factors.double() * (bias - mean) + self.goal.mean
        shape = ",".join(map(str, model.source.tensors[self.weight].shape))
        return {f"{self.weight}{_FACTORS}{shape}": factors, self.bias: corrected.float()}


def put_corrections(model: LiveModel, stored: Mapping[str, Tensor]) -> None:
    """Have a network run with tensors as the method makes them of a file of kind repair, rounded as they are stored."""
    changed = {}
    for name, found in stored.items():
        tensor, _, shape = name.partition(_FACTORS)
        own = as_torch(model.source.tensors[tensor])
        if shape:
            factors = found.cpu().reshape(-1, *[1] * (own.ndim - 1))
            wide = own if own.dtype.itemsize > 4 else own.float()
            changed[tensor] = (wide * factors).to(own.dtype)
        else:
            changed[tensor] = found.cpu().to(own.dtype)
    model.put(changed)


def batch_norms(model: LiveModel) -> list[BatchNorm]:
    """The batch norms of a network that keep running statistics."""
    from torch import nn

    found = []
    for path, module in model.module.named_modules():
        if not isinstance(module, nn.modules.batchnorm._BatchNorm) or module.running_mean is None:
            continue
        mean, variance = (
            _only_file(model, f"{path}.{buffer}") for buffer in ("running_mean", "running_var")
        )
        if mean is None or variance is None:
            raise CompatibilityError(
                f"The running statistics of {path} are no tensors of {model.name!r}, so they cannot be measured anew; "
                "give a checkpoint that holds them."
            )
        found.append(BatchNorm(path, mean, variance))
    return found


def rescaled_maps(model: LiveModel, paths: Sequence[str]) -> list[RescaledMap]:
    """The linear maps at some paths, without goals; raises CompatibilityError where nothing can be folded in."""
    found = []
    maps = linear_maps(model)
    for path in paths:
        weight, bias = (_only_file(model, f"{path}.{part}") for part in ("weight", "bias"))
        if bias is None:
            raise _unfoldable(model, path, "has no bias, which would shift the mean of its units")
        own = maps.get(path)
        if own is None:
            raise _unfoldable(
                model, path, "is tied, transposed or in groups, and its units unknown"
            )
        if weight is None or not isinstance(model.module.get_submodule(path), _plain_maps()):
            raise _unfoldable(model, path, "is not stored as one matrix with a row for each unit")
        if len(model.users(weight)) > 1 or len(model.users(bias)) > 1:
            raise _unfoldable(model, path, "shares its weights with another layer")
        found.append(RescaledMap(path, weight, bias, -1 if own.rows is flat_rows else 1))
    return found


def affine_paths(model: LiveModel) -> set[str]:
    """The paths of all modules that multiply what they read with weights, whatever the form of these."""
    modules = model.module.named_modules()
    return {*linear_maps(model)} | {p for p, module in modules if isinstance(module, _plain_maps())}


def _unfoldable(model: LiveModel, path: str, reason: str) -> CompatibilityError:
    return CompatibilityError(
        f"{path} of {model.name!r} {reason}, so a correction of its units cannot be folded into its weights exactly; "
        "REPAIR cannot be used with this network."
    )


def _plain_maps() -> tuple[Any, ...]:
    from torch import nn

    return (nn.Linear, nn.modules.conv._ConvNd)


def _only_file(model: LiveModel, name: str) -> str | None:
    """The stored tensor that one in memory is made from, if it is one."""
    files = model.names.files_of(name) if name in model.names.owners else ()
    return files[0] if len(files) == 1 else None
