"""Gradients of weights as what they are made of: read a piece at a time, without an array as large as the weights.

The gradient of a matrix W [O, I] that multiplied rows X [N, I] is G^T X, G [N, O] being the gradient of what it gave.
That of a table that is looked up has the few rows that were. Both are smaller than W where there are few tokens, and
whoever sums them up goes through them once, in the cache of the processor.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from weightsmith.live.name_map import NameMap

# Elements of a piece: as many as lie in the cache of a processor's core, or are worth the start of a kernel.
_PIECE = {"cpu": 1 << 16}
_PIECE_ELSEWHERE = 1 << 24


@dataclass(frozen=True, slots=True, eq=False)
class Whole:
    """A gradient as an array of the shape of its weights."""

    value: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What it is made of."""
        return (self.value,)

    def touches(self, first: int, last: int) -> bool:
        """Whether rows [first, last) may be other than zero."""
        return True

    def rows(self, first: int, last: int) -> Tensor:
        """Rows [first, last), as an array of its own in float32."""
        return self.value[first:last].float().clone()


@dataclass(frozen=True, slots=True, eq=False)
class Product:
    """left^T right, of left [N, O] and right [N, I]."""

    left: Tensor
    right: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What it is made of."""
        return self.left, self.right

    def touches(self, first: int, last: int) -> bool:
        """Whether rows [first, last) may be other than zero."""
        return True

    def rows(self, first: int, last: int) -> Tensor:
        """Rows [first, last), as an array of its own in float32."""
        return self.left[:, first:last].float().T @ self.right.float()


@dataclass(frozen=True, eq=False)
class Looked:
    """Rows [U, I] at places [U] that are in order, each once."""

    places: Tensor
    values: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """What it is made of."""
        return self.places, self.values

    @cached_property
    def _sorted(self) -> list[int]:
        return [int(place) for place in self.places.tolist()]

    def touches(self, first: int, last: int) -> bool:
        """Whether rows [first, last) may be other than zero."""
        return bisect_left(self._sorted, first) < bisect_left(self._sorted, last)

    def rows(self, first: int, last: int) -> Tensor:
        """Rows [first, last), as an array of its own in float32."""
        start, stop = bisect_left(self._sorted, first), bisect_left(self._sorted, last)
        found = self.values.new_zeros((last - first, self.values.shape[1])).float()
        found[self.places[start:stop] - first] = self.values[start:stop].float()
        return found


Term = Whole | Product | Looked


@dataclass(frozen=True, slots=True, eq=False)
class WeightGradient:
    """The gradient of a tensor of some shape, the sum of its terms in their order."""

    shape: tuple[int, ...]
    terms: Sequence[Term]

    @property
    def row(self) -> int:
        """The elements of a row, along the first axis."""
        return math.prod(self.shape[1:])

    @property
    def held(self) -> int:
        """The elements of what it is made of."""
        return sum(tensor.numel() for term in self.terms for tensor in term.tensors)

    @property
    def behind(self) -> int:
        """The rows that were multiplied or looked up."""
        return sum(len(term.tensors[0]) for term in self.terms if not isinstance(term, Whole))

    @property
    def device(self) -> str:
        """The device of what it is made of."""
        return str(self.terms[0].tensors[0].device)

    @property
    def is_whole(self) -> bool:
        """Whether an array of the shape of the weights is among what it is made of."""
        return any(isinstance(term, Whole) for term in self.terms)

    def ranges(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows, each a piece; where all are zero there may be none."""
        count = self.shape[0] if self.shape else 1
        device = self.terms[0].tensors[0].device.type
        step = max(1, _PIECE.get(device, _PIECE_ELSEWHERE) // max(self.row, 1))
        for first in range(0, count, step):
            last = min(first + step, count)
            if any(term.touches(first, last) for term in self.terms):
                yield first, last

    def rows(self, first: int, last: int) -> Tensor:
        """Rows [first, last) in float32, flat, as an array of its own."""
        found: Tensor | None = None
        for term in self.terms:
            if term.touches(first, last):
                own = term.rows(first, last) if self.shape else term.tensors[0].float().clone()
                found = own if found is None else found.add_(own)
        assert found is not None
        return found.reshape(-1)

    def dense(self) -> Tensor:
        """The gradient as one array, in the dtype of its terms."""
        first, *others = self.terms
        found = _as_array(self.shape, first)
        if others and isinstance(first, Whole):
            found = found.clone()
        for other in others:
            if isinstance(other, Looked):
                found[other.places] += other.values
            else:
                found += _as_array(self.shape, other)
        return found

    def compact(self) -> WeightGradient:
        """The same in one array, if what it is made of is larger."""
        if self.held <= math.prod(self.shape):
            return self
        return WeightGradient(self.shape, [Whole(self.dense())])


def _as_array(shape: tuple[int, ...], term: Term) -> Tensor:
    if isinstance(term, Whole):
        return term.value
    if isinstance(term, Product):
        return term.left.T @ term.right
    found = term.values.new_zeros(shape)
    found[term.places] = term.values
    return found


def gradients_by_files(
    names: NameMap, gradients: Mapping[str, WeightGradient]
) -> dict[str, WeightGradient]:
    """Gradients by names in memory by the names of the files, as `NameMap.to_files` does it.

    Those of tensors that are stored otherwise than they are in memory become arrays.
    """
    found = {}
    for origin in names.origins_of(gradients):
        if origin.convert is None:
            found[origin.files[0]] = gradients[origin.memory[0]]
            continue
        whole = {name: gradients[name].dense() for name in origin.memory}
        for file, tensor in origin.reverted(whole).items():
            found[file] = WeightGradient(tuple(tensor.shape), [Whole(tensor)])
    return found
