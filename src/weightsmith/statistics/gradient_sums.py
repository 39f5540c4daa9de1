"""Sums over gradients of scalars of single items: squares, and means with what they say of weights.

A sum as large as the weights is gone through once for several items: their gradients are computed piece by piece,
summed up in float32 while they lie in the processor's cache, and added to what was summed before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from weightsmith.live import WeightGradient
from weightsmith.statistics.forward_sums import Measured
from weightsmith.statistics.sum_space import SumSpace

if TYPE_CHECKING:
    from torch import Tensor

# Gradients wait for others until so many rows (tokens) are behind them, but for those of so many elements.
_ROWS, _HELD = 512, 1 << 22


@dataclass(frozen=True, slots=True, eq=False)
class ScalarGradient:
    """The gradient of a scalar of an item at one tensor.

    `is_squared` tells whether its square is summed up; `factor` times it is the gradient of the item's loss, None where
    it is no multiple of that.
    """

    value: WeightGradient
    item: int
    is_squared: bool
    factor: float | None


class SquareSums:
    """sum g^2 / N over the gradients g of scalars; N is how many sequences, or tokens, these are of."""

    def __init__(self, count: int, space: SumSpace) -> None:
        self._count, self._space = count, space
        self._sums: dict[str, Tensor] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def begin(self, name: str, shape: tuple[int, ...], device: str) -> None:
        """A tensor has gradients."""
        if name not in self._sums:
            self._shapes[name] = shape
            self._sums[name] = self._space.zeros(math.prod(shape), device)

    def add(self, name: str, start: int, pieces: Sequence[Tensor]) -> None:
        """Add the squares of elements from `start` on of several gradients."""
        squares = pieces[0].square()
        for piece in pieces[1:]:
            squares.addcmul_(piece, piece)
        _add_to(self._sums[name], start, squares)

    def take(self) -> Measured:
        """The means, which are then forgotten."""
        found = {
            name: total.div_(self._count).float().view(self._shapes[name])
            for name, total in self._sums.items()
        }
        self._sums.clear()
        return Measured(found)


class GradientSums:
    """Of the loss l of every item, with its gradient g: what g is on average, and what it says of the weights theta.

    mean         E g                  absolute     E |g|
    taylor       theta E g            sensitivity  E |<theta, g>|, one number for a tensor

    and g itself of the first items.
    """

    def __init__(self, count: int, singles: int, space: SumSpace) -> None:
        self._count, self._singles, self._space = count, singles, space
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._mean: dict[str, Tensor] = {}
        self._absolute: dict[str, Tensor] = {}
        self._products: dict[str, float] = {}
        self._kept: dict[str, Tensor] = {}

    def begin(
        self, name: str, shape: tuple[int, ...], device: str, entries: Sequence[ScalarGradient]
    ) -> None:
        """A tensor has gradients."""
        count = math.prod(shape)
        if name not in self._mean:
            self._shapes[name] = shape
            self._mean[name] = self._space.zeros(count, device)
            self._absolute[name] = self._space.zeros(count, device)
        for entry in entries:
            if entry.item < self._singles:
                self._kept[f"{name}::{entry.item}"] = self._space.zeros(count, device, wide=False)

    def add(
        self,
        name: str,
        start: int,
        pieces: Sequence[tuple[ScalarGradient, Tensor]],
        weights: Tensor,
    ) -> list[Tensor]:
        """Add elements from `start` on of several gradients, which are overwritten; their products with the weights."""
        import torch

        own = weights.detach().reshape(-1)[start : start + len(pieces[0][1])]
        mean, absolute = torch.zeros_like(pieces[0][1]), torch.zeros_like(pieces[0][1])
        products = []
        for entry, piece in pieces:
            assert entry.factor is not None
            piece.mul_(entry.factor)
            if entry.item < self._singles:
                self._kept[f"{name}::{entry.item}"][start : start + len(piece)] = piece
            products.append((piece * own).sum().double())
            mean.add_(piece)
            absolute.add_(piece.abs_())
        _add_to(self._mean[name], start, mean)
        _add_to(self._absolute[name], start, absolute)
        return products

    def add_products(self, name: str, products: Sequence[float]) -> None:
        """Add what the whole gradients gave with the weights."""
        known = self._products.get(name, 0.0)
        self._products[name] = known + sum(abs(product) for product in products)

    def take(self, weights: Mapping[str, Tensor]) -> Measured:
        """What was summed up, which is then forgotten."""
        import torch

        found = {
            key: kept.view(self._shapes[key.rpartition("::")[0]])
            for key, kept in self._kept.items()
        }
        for name, total in self._mean.items():
            shape = self._shapes[name]
            mean = total.div_(self._count)
            taylor = self._space.zeros(len(mean), mean.device.type, wide=False)
            torch.mul(weights[name].detach().reshape(-1), mean, out=taylor)
            found[f"{name}::mean"] = mean.float().view(shape)
            found[f"{name}::absolute"] = self._absolute[name].div_(self._count).float().view(shape)
            found[f"{name}::taylor"] = taylor.view(shape)
            found[f"{name}::sensitivity"] = torch.tensor([self._products[name] / self._count])
        for sums in (self._mean, self._absolute, self._products, self._kept):
            sums.clear()
        return Measured(found)


class GroupedSums:
    """Gives gradients to the sums over them, those of several items together."""

    def __init__(self, squares: SquareSums | None, means: GradientSums | None) -> None:
        self._squares, self._means = squares, means
        self._waiting: dict[str, list[ScalarGradient]] = {}

    def add(self, name: str, gradient: ScalarGradient, weights: Mapping[str, Tensor]) -> None:
        """Add the gradient of a scalar at a tensor."""
        waiting = self._waiting.setdefault(name, [])
        waiting.append(gradient)
        rows = sum(entry.value.behind for entry in waiting)
        if gradient.value.is_whole or gradient.value.held > _HELD or rows >= _ROWS:
            self._add_waiting(name, weights)

    def finish(self, weights: Mapping[str, Tensor]) -> None:
        """Add all that wait for others."""
        for name in list(self._waiting):
            self._add_waiting(name, weights)

    def _add_waiting(self, name: str, weights: Mapping[str, Tensor]) -> None:
        entries = self._waiting.pop(name)
        gradient = entries[0].value
        summed = [i for i, entry in enumerate(entries) if entry.factor is not None]
        squared = [i for i, entry in enumerate(entries) if entry.is_squared]
        if self._squares is not None and squared:
            self._squares.begin(name, gradient.shape, gradient.device)
        if self._means is not None and summed:
            chosen = [entries[i] for i in summed]
            self._means.begin(name, gradient.shape, gradient.device, chosen)
        products: list[float | Tensor] = [0.0] * len(summed)
        for first, last in _ranges(entries):
            start = first * gradient.row
            pieces = [entry.value.rows(first, last) for entry in entries]
            if self._squares is not None and squared:
                self._squares.add(name, start, [pieces[i] for i in squared])
            if self._means is not None and summed:
                given = [(entries[i], pieces[i]) for i in summed]
                own = self._means.add(name, start, given, weights[name])
                products = [a + b for a, b in zip(products, own, strict=True)]
        if self._means is not None and summed:
            self._means.add_products(name, [float(product) for product in products])


def _ranges(entries: Sequence[ScalarGradient]) -> list[tuple[int, int]]:
    """The pieces in which any of some gradients may be other than zero."""
    every = {piece for entry in entries for piece in entry.value.ranges()}
    return sorted(every)


def _add_to(total: Tensor, start: int, piece: Tensor) -> None:
    # Converted first, since an addition of two dtypes takes twice the time.
    total[start : start + len(piece)].add_(piece.to(total.dtype))
