"""What a plan knows of the adapter that it makes: how each tensor comes about, and what is kept of it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from weightsmith.checkpoints import Checkpoint
from weightsmith.lora import Array, ChangedTarget, Coordinates, Dialect, Lego, Loaded, RankBound
from weightsmith.tensors import DType


@dataclass(frozen=True, slots=True, eq=False)
class AdapterResult:
    """How the result of a plan is stored as an adapter.

    `targets` are the tensors as methods see them. `sums` has the coefficients of the adapters, by label, of every
    tensor that stays factored, `kept` the replaced tensors that stay as they are in the adapters (None: no adapter
    takes part). What is neither is computed, in `coordinates` where the recipe names a space. `bound` says how far
    changes are cut, with `largest` to the largest rank of the adapters at the tensor too; `lego` how units of sums are
    clustered. `base` is opened where the recipe names one.
    """

    loaded: Mapping[str, Loaded]
    targets: Mapping[str, ChangedTarget]
    sums: Mapping[str, Mapping[str, float]]
    kept: Mapping[str, Array | None]
    bound: RankBound
    dialect: Dialect
    dtype: DType
    base: Checkpoint | None
    largest: bool = False
    lego: Lego | None = None
    coordinates: Coordinates | None = None

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Every folder and file that the adapters and their base are read from."""
        places = [place for one in self.loaded.values() for place in one.inputs]
        return (*places, *(() if self.base is None else self.base.inputs))

    @property
    def settled(self) -> set[str]:
        """The tensors for which nothing is computed dense."""
        return {*self.sums, *self.kept}

    @property
    def computed(self) -> list[str]:
        """The tensors with factors that are computed in whole, and cut."""
        return [n for n, target in self.targets.items() if target.units and n not in self.sums]

    def is_given(self, label: str) -> bool:
        """Whether an input is one that the recipe names: not the zeros that stand for a base."""
        return label in self.loaded or self.base is not None

    def bound_of(self, name: str) -> RankBound:
        """How far the change of a tensor is cut: as asked for.

        Where nothing is, what is computed of elements is cut to the largest rank of an adapter there; sums are exact,
        and so is what comes out of a space.
        """
        is_dense = name not in self.sums and not self.targets[name].in_space
        if not self.largest and not (is_dense and self.bound.is_open):
            return self.bound
        ranks = self._ranks(name, self.loaded)
        return replace(self.bound, rank=max(ranks, default=1))

    def predicted_rank(self, name: str) -> int:
        """The rank of a result before anything is computed; an upper limit where energy or error decide."""
        target = self.targets[name]
        rows, columns = target.units[0].change.shape
        ranks, asked = self._ranks(name, self.loaded), self.bound_of(name).rank
        if name in self.sums and self.lego is None:
            most = min(sum(ranks), asked or sum(ranks))
        elif target.in_space:
            most = min(*target.shape, asked or rows)
        else:
            most = asked or max(ranks, default=1)
        return max(1, min(most, rows, columns))

    @property
    def nbytes(self) -> int:
        """Bytes of the result's tensors, about."""
        numbers = 0
        for name, target in self.targets.items():
            if not target.units:
                numbers += math.prod(target.shape)
                continue
            rows, columns = target.units[0].change.shape
            numbers += len(target.units) * self.predicted_rank(name) * (rows + columns)
        return numbers * self.dtype.itemsize

    @property
    def held_bytes(self) -> int:
        """Memory of the factors, and of decomposing the largest change that is computed."""
        held = sum(8 * one.adapter.parameters for one in self.loaded.values())
        dense = [self.targets[name].matrix for name in self.computed]
        if self.coordinates is not None:
            return held + self.coordinates.held_bytes
        return held + 8 * max((4 * m * n + 8 * min(m, n) ** 2 for m, n in dense), default=0)

    def _ranks(self, name: str, labels: Collection[str]) -> list[int]:
        """The rank of each adapter that changes a tensor; of fused experts the largest."""
        keys = [unit.key for unit in self.targets[name].units]
        adapters = (self.loaded[label].adapter for label in labels)
        found = ([adapter.factors.get(key) for key in keys] for adapter in adapters)
        ranks = ([factors.change.rank for factors in row if factors is not None] for row in found)
        return [max(row) for row in ranks if row]
