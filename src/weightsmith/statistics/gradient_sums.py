"""Sums over gradients of scalars of single items: squares, and means with what they say of weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from weightsmith.statistics.forward_sums import SMALL, Measured

if TYPE_CHECKING:
    from torch import Tensor


class SquareSums:
    """sum g^2 / N over the gradients g of scalars; N is how many sequences, or tokens, these are of."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._sums: dict[str, Tensor] = {}

    def add(self, gradients: Mapping[str, Tensor]) -> None:
        """Add the squares of one scalar's gradients."""
        import torch

        for name, gradient in gradients.items():
            if gradient.numel() > SMALL:
                total = self._sums.setdefault(name, torch.zeros_like(gradient, dtype=torch.float32))
                total.addcmul_(gradient.float(), gradient.float())
            else:
                square = gradient.double().square_()
                self._sums[name] = self._sums[name].add_(square) if name in self._sums else square

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
        self, gradients: Mapping[str, Tensor], weights: Mapping[str, Tensor], item: int
    ) -> None:
        """Add the gradients of an item's loss at weights."""
        import torch

        for name, gradient in gradients.items():
            dtype = torch.float32 if gradient.numel() > SMALL else torch.float64
            wide = gradient.to(dtype)
            for sums, value in ((self._mean, wide), (self._absolute, wide.abs())):
                sums[name] = sums[name].add_(value) if name in sums else value.clone()
            product = torch.dot(
                gradient.reshape(-1).double(), weights[name].detach().reshape(-1).double()
            )
            self._products[name] = self._products.get(name, 0.0) + abs(float(product))
            if item < self._singles:
                self._kept[f"{name}::{item}"] = gradient.float().clone()

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
