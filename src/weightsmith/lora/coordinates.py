"""Changes of several adapters as coordinates in a space: small tensors that any method merges, and the way back.

Each matrix, and each expert of a fused tensor, is a tensor of its own here, in float64. What has no factors (biases,
norms, modules that are stored whole) is in no space and keeps its elements.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from weightsmith.deltas import MOST_HELD, Change, ChangedTensor, Full, Matrix
from weightsmith.lora.algebra import zeros
from weightsmith.lora.as_changes import ChangedTarget, Loaded, NoChange
from weightsmith.lora.bounds import RankBound, TruncatedChange
from weightsmith.lora.low_rank_adapters import Factors
from weightsmith.lora.spaces import Entered, Space
from weightsmith.tensors import DType, LazyTensor, one_blas_thread

# Tensors whose coordinates are kept: those that are read at this moment, and a few more.
_KEPT = 8


@dataclass(frozen=True, slots=True, eq=False)
class Coordinates:
    """The changes of `loaded` in a space; `units` are the factors of each key, without numbers.

    The space of a tensor is that of all the adapters together. It is found again whenever a tensor is read, so that no
    more than a few are held; `shapes` has the size of the coordinates of each key that is changed at all.
    """

    space: Space
    loaded: Sequence[Loaded]
    units: Mapping[str, Factors]
    shapes: Mapping[str, tuple[int, int]]
    _recent: OrderedDict[str, Entered] = field(default_factory=OrderedDict)

    @classmethod
    def of(
        cls, space: Space, loaded: Sequence[Loaded], targets: Mapping[str, ChangedTarget]
    ) -> Coordinates:
        """Enter the space with every tensor that has factors; raises what the decompositions raise."""
        units = {unit.key: unit for target in targets.values() for unit in target.units}
        shapes: dict[str, tuple[int, int]] = {}
        made = cls(space, loaded, units, shapes)
        with one_blas_thread():
            shapes |= {key: made.entered(key).shape for key in units}
        return made

    def targets(self, targets: Mapping[str, ChangedTarget]) -> Iterator[ChangedTarget]:
        """What a method sees of targets: coordinates where there are factors. What no adapter changes is left out."""
        for target in targets.values():
            if not target.units:
                yield target
            for unit in target.units:
                if 0 not in self.shapes[unit.key]:
                    yield ChangedTarget(unit.key, self.shapes[unit.key], (unit,), in_space=True)

    def of_one(self, one: Loaded) -> dict[str, LazyTensor]:
        """The coordinates of one adapter by key, computed while they are read."""
        found: dict[str, LazyTensor] = {}
        place = self.loaded.index(one)
        for key, unit in self.units.items():
            none = NoChange(key, self.shapes[key], DType.FLOAT64)
            if key not in one.adapter.factors:
                found[key] = none
                continue
            stored = one.by_target.get(unit.target, ()) if not unit.part else ()
            found[key] = ChangedTensor(none, (), _Entering(self, key, place), beside=stored)
        return found

    def unmoved(self) -> dict[str, Factors]:
        """The factors of what the adapters name but none of them changes."""
        keys = (key for key, shape in self.shapes.items() if 0 in shape)
        units = {key: self.units[key] for key in keys}
        return {k: replace(u, change=zeros(*u.change.shape)) for k, u in units.items()}

    def leave(self, key: str, merged: Matrix, bound: RankBound) -> TruncatedChange:
        """The change that merged coordinates stand for, cut to a bound."""
        return self.entered(key).leave(merged, bound)

    @property
    def name(self) -> str:
        """What recipes call the space."""
        return self.space.name

    @property
    def held_bytes(self) -> int:
        """Memory of what is kept of the spaces and read of coordinates, and of finding a space, about."""
        coordinates = max((math.prod(shape) for shape in self.shapes.values()), default=0)
        bases = (self._rank(key) * sum(unit.change.shape) for key, unit in self.units.items())
        spaces = (len(self.loaded) + 2) * coordinates + max(bases, default=0)
        return 8 * (_KEPT * spaces + MOST_HELD * coordinates)

    def _rank(self, key: str) -> int:
        adapters = (one.adapter.factors.get(key) for one in self.loaded)
        return sum(factors.change.rank for factors in adapters if factors is not None)

    def entered(self, key: str) -> Entered:
        """The space of one tensor, with the coordinates of every adapter."""
        known = self._recent.get(key)
        if known is None:
            unit = self.units[key]
            none = zeros(*unit.change.shape)
            found = (one.adapter.factors.get(key) for one in self.loaded)
            changes = [none if factors is None else factors.change for factors in found]
            known = self.space.enter(changes, input_first=unit.input_first)
            self._recent[key] = known
            while len(self._recent) > _KEPT:
                self._recent.popitem(last=False)
        return known


@dataclass(frozen=True, slots=True, eq=False)
class _Entering:
    """A function that gives the coordinates of one adapter at a tensor."""

    coordinates: Coordinates
    key: str
    place: int

    def __call__(self) -> Change:
        return Full(self.coordinates.entered(self.key).coordinates[self.place])
