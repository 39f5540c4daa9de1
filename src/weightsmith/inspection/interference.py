"""What several models changed of one base, and how their changes get in each other's way; streamed tile by tile.

With u_i = expert_i - base, over the values of a tensor or of many:

    relative change    |u_i| / |base|
    cosine             u_i . u_j / (|u_i| |u_j|)
    sign conflict      pairs of changes of one value that have opposite signs / pairs of changes of one value

A sign conflict of 0.5 is what independent changes have. Sums are float64 over values in work precision.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from weightsmith.checkpoints import Checkpoint, respelled
from weightsmith.engine import JobSettings, measure_each, measure_group
from weightsmith.graph import (
    Scalar,
    Value,
    add_all,
    dot,
    exact_sum,
    source,
    total,
    where,
)
from weightsmith.naming import natural_key
from weightsmith.tensors import LazyTensor

Place = tuple[str | None, int | None, str]


@dataclass(frozen=True, slots=True)
class Changes:
    """Sums over values: `products[i][j]` of u_i u_j for j <= i, `base` of base^2, and the pairs of changes of one value
    that `oppose` each other, of all `pairs`.
    """

    tensors: int
    elements: int
    base: float
    products: tuple[tuple[float, ...], ...]
    oppose: float
    pairs: float

    def norm(self, i: int) -> float:
        """|u_i|."""
        return math.sqrt(self.products[i][i])

    def relative(self, i: int) -> float:
        """|u_i| / |base|; 0 where nothing changed, infinite where only the base is 0."""
        if self.base == 0:
            return 0.0 if self.norm(i) == 0 else math.inf
        return self.norm(i) / math.sqrt(self.base)

    def cosine(self, i: int, j: int) -> float | None:
        """Cosine between u_i and u_j; None where one of them is 0."""
        norms = self.norm(i) * self.norm(j)
        if norms == 0:
            return None
        cosine = self.products[max(i, j)][min(i, j)] / norms
        return cosine if math.isnan(cosine) else max(-1.0, min(1.0, cosine))

    @property
    def mean_cosine(self) -> float | None:
        """The mean of the cosines over all pairs that have one."""
        pairs = itertools.combinations(range(len(self.products)), 2)
        known = [cosine for i, j in pairs if (cosine := self.cosine(i, j)) is not None]
        return sum(known) / len(known) if known else None

    @property
    def sign_conflict(self) -> float | None:
        """Share of pairs of changes of one value with opposite signs; None where no value is changed twice."""
        return self.oppose / self.pairs if self.pairs else None


@dataclass(frozen=True, slots=True)
class TensorChanges:
    """The changes of one tensor, with its block, layer and role in the base."""

    name: str
    place: Place
    changes: Changes


@dataclass(frozen=True, slots=True)
class Interference:
    """What `measure_interference` found: tensors in the base's order, and those that not all have in one form."""

    tensors: tuple[TensorChanges, ...]
    left_out: tuple[str, ...]

    @property
    def total(self) -> Changes | None:
        """All tensors as if they were one; None without any."""
        return changes_together(t.changes for t in self.tensors) if self.tensors else None

    def grouped(self) -> dict[Place, Changes]:
        """The changes by block, layer and role, those outside the blocks first."""
        members: dict[Place, list[Changes]] = defaultdict(list)
        for tensor in self.tensors:
            members[tensor.place].append(tensor.changes)
        return {
            place: changes_together(members[place]) for place in sorted(members, key=place_order)
        }


def place_order(place: Place) -> tuple[Any, ...]:
    """A key that sorts places: outside the blocks first, then block by block, layers in the order of numbers."""
    return (place[0] is not None, natural_key(place[0] or ""), place[1] or 0)


def changes_together(parts: Iterable[Changes]) -> Changes:
    """The changes of many tensors as if they were one; sums are exact, so their order does not matter."""
    listed = list(parts)
    experts = range(len(listed[0].products))
    return Changes(
        tensors=sum(part.tensors for part in listed),
        elements=sum(part.elements for part in listed),
        base=exact_sum([part.base for part in listed]),
        products=tuple(
            tuple(exact_sum([part.products[i][j] for part in listed]) for j in range(i + 1))
            for i in experts
        ),
        oppose=exact_sum([part.oppose for part in listed]),
        pairs=exact_sum([part.pairs for part in listed]),
    )


def measure_interference(
    base: Checkpoint, experts: Sequence[Checkpoint], *, threads: int | None = None
) -> Interference:
    """Measure what experts changed of a base.

    Reads every floating-point tensor that all have in one shape once. O(K^2) sums per tensor for K experts; memory is
    K + 1 tiles per thread (default: all cores). Raises CheckpointError for damaged files.
    """
    experts = [respelled(expert, base) for expert in experts]
    floats = [name for name, tensor in base.tensors.items() if tensor.dtype.is_float]
    common = [name for name in floats if all(_fits(base, expert, name) for expert in experts)]
    groups = [[model.tensors[name] for model in (base, *experts)] for name in common]
    found = dict(zip(common, measure_each(groups, measure_changes, threads), strict=True))
    placed = {name: base.places[name] for name in common}
    return Interference(
        tuple(
            TensorChanges(name, (role.stack, role.layer, role.kind.value), found[name])
            for name, role in placed.items()
        ),
        tuple(name for name in floats if name not in found),
    )


def _fits(base: Checkpoint, expert: Checkpoint, name: str) -> bool:
    tensor = expert.tensors.get(name)
    return tensor is not None and tensor.dtype.is_float and tensor.shape == base.tensors[name].shape


def measure_changes(tensors: Sequence[LazyTensor], settings: JobSettings) -> Any:
    """A part of a job that gives the `Changes` of tensors of one shape, the first of which is the base."""
    measured = yield from measure_group(tensors, _reductions(len(tensors) - 1), settings)
    sums = measured.values
    return Changes(
        tensors=1,
        elements=tensors[0].numel,
        base=sums["base"],
        products=tuple(
            tuple(sums[f"{i}.{j}"] for j in range(i + 1)) for i in range(len(tensors) - 1)
        ),
        oppose=sums["oppose"],
        pairs=sums["pairs"],
    )


def _reductions(experts: int) -> dict[str, Scalar]:
    base = source(0)
    changes = [source(i + 1) - base for i in range(experts)]
    ups = add_all(_ones(change > 0) for change in changes)
    downs = add_all(_ones(change < 0) for change in changes)
    moved = ups + downs
    found = {
        "base": dot(base, base),
        "oppose": total(ups * downs),
        "pairs": total(moved * (moved - 1.0) * 0.5),
    }
    for i in range(experts):
        for j in range(i + 1):
            found[f"{i}.{j}"] = dot(changes[i], changes[j])
    return found


def _ones(mask: Value) -> Value:
    return where(mask, 1.0, 0.0)
