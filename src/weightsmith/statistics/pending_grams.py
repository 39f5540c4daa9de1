"""The Gram matrices of one model of a merge while they are measured: its statistics file as it is going to be.

A merge is planned with it before anything is measured, and its matrices are read once they are there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from weightsmith.checkpoints import Checkpoint, StatisticsHeader, assemble, statistics_metadata
from weightsmith.errors import RecipeError
from weightsmith.statistics.kept_parts import KeptPart
from weightsmith.statistics.linear_maps import LinearMap
from weightsmith.tensors import DType, LazyTensor, Shaped

_UPPER = "::upper"


class PendingGrams:
    """Matrices by the names of weights; a weight that is never called has one of zeros, which weighs nothing."""

    def __init__(self, maps: Mapping[str, LinearMap]) -> None:
        self._widths = {own.tensors[0]: own.width for own in maps.values()}
        self._same = {name: own.tensors[0] for own in maps.values() for name in own.tensors[1:]}
        self._found: dict[str, LazyTensor] = {}
        self._passed: set[str] = set()

    def add(self, part: KeptPart, passed: Collection[str]) -> None:
        """Take a part, which has the matrices of all weights that are `passed` and called."""
        measured = {tensor.name: tensor for tensor in part.tensors}
        leaders = {tensor.name.removesuffix(_UPPER) for tensor in part.tensors}
        for name, leader in {**{n: n for n in leaders}, **part.same}.items():
            self._found[name] = measured[f"{leader}{_UPPER}"]
        self._passed.update(passed)

    def checkpoint(self, header: StatisticsHeader, file: Path) -> Checkpoint:
        """What opening the file would give; `file` stands for it."""
        uppers = {
            f"{name}{_UPPER}": PendingUpper(f"{name}{_UPPER}", name, width, self)
            for name, width in self._widths.items()
        }
        opened = assemble(uppers, None, path=file, source=str(file))
        return replace(opened, metadata=statistics_metadata(replace(header, same=self._same)))

    def read(self, name: str, start: int, stop: int, buffer: memoryview) -> None:
        """Read elements of the matrix of a weight; raises RecipeError before its block is measured."""
        if name not in self._passed:
            raise RecipeError(
                f"The merge needs the Gram matrix of {name!r} before the layers in front of it are merged, which it "
                "cannot have; collect gram of each model by itself, without the recipe."
            )
        found = self._found.get(name)
        if found is None:
            np.frombuffer(buffer, np.uint8)[:] = 0
        else:
            found.read_into(start, stop, buffer)


@dataclass(frozen=True, slots=True, eq=False)
class PendingUpper(Shaped):
    """The upper triangle of the matrix of a weight, as a file of statistics has it."""

    name: str
    weight: str
    width: int
    grams: PendingGrams

    @property
    def dtype(self) -> DType:
        """float32."""
        return DType.FLOAT32

    @property
    def shape(self) -> tuple[int, ...]:
        """(n (n + 1) / 2,)."""
        return (self.width * (self.width + 1) // 2,)

    @property
    def location(self) -> str:
        """What messages call it."""
        return f"the Gram matrix of {self.weight!r}"

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        """Write elements [start, stop) of what was measured."""
        self.grams.read(self.weight, start, stop, buffer)
