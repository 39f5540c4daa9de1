"""Sums over gradients of scalars of single items: squares, and means with what they say of weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from weightsmith.statistics.forward_sums import Measured
from weightsmith.statistics.row_sums import zeros_to_sum

if TYPE_CHECKING:
    from torch import Tensor


class SquareSums:
    """sum g^2 / N over the gradients g of scalars; N is how many sequences, or tokens, these are of."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._sums: dict[str, Tensor] = {}

    def add(self, gradients: Mapping[str, Tensor]) -> None:
        """Add the squares of one scalar's gradients."""
        for name, gradient in gradients.items():
            own = gradient.float()
            if name not in self._sums:
                self._sums[name] = zeros_to_sum(own.shape, own)
            total = self._sums[name]
            if total.dtype == own.dtype:
                total.addcmul_(own, own)
            else:
                total.add_(own.square())

    def take(self) -> Measured:
        """The means, which are then forgotten."""
        found = {name: total.div_(self._count).float() for name, total in self._sums.items()}
        self._sums.clear()
        return Measured(found)


class GradientSums:
    """Of the loss l of every item, with its gradient g: what g is on average, and what it says of the weights theta.

    mean         E g                  absolute     E |g|
    taylor       theta E g            sensitivity  E |<theta, g>|, one number for a tensor

    and g itself of the first items.
    """

    def __init__(self, count: int, singles: int) -> None:
        self._count, self._singles = count, singles
        self._mean: dict[str, Tensor] = {}
        self._absolute: dict[str, Tensor] = {}
        self._products: dict[str, float] = {}
        self._kept: dict[str, Tensor] = {}

    def add(
        self,
        gradients: Mapping[str, Tensor],
        factor: float,
        weights: Mapping[str, Tensor],
        item: int,
    ) -> None:
        """Add the gradients of an item's loss at weights, which are those given times a factor."""
        import torch

        for name, gradient in gradients.items():
            own = gradient.float()
            for sums, value, own_factor in (
                (self._mean, own, factor),
                (self._absolute, own.abs(), abs(factor)),
            ):
                if name not in sums:
                    sums[name] = zeros_to_sum(own.shape, own)
                sums[name].add_(value, alpha=own_factor)
            product = factor * float((own * weights[name].detach()).sum(dtype=torch.float64))
            self._products[name] = self._products.get(name, 0.0) + abs(product)
            if item < self._singles:
                self._kept[f"{name}::{item}"] = own * factor

    def take(self, weights: Mapping[str, Tensor]) -> Measured:
        """What was summed up, which is then forgotten."""
        import torch

        found = dict(self._kept)
        for name, total in self._mean.items():
            mean = total / self._count
            found[f"{name}::mean"] = mean.float()
            found[f"{name}::absolute"] = (self._absolute[name] / self._count).float()
            found[f"{name}::taylor"] = (weights[name].detach() * mean).float()
            found[f"{name}::sensitivity"] = torch.tensor([self._products[name] / self._count])
        for sums in (self._mean, self._absolute, self._products, self._kept):
            sums.clear()
        return Measured(found)
