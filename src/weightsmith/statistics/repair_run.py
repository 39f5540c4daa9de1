"""REPAIR measured: unit after unit in the order of their calls, each behind all that were corrected before it.

Units before the one that is measured have their corrections already, so one pass over the data for each unit is the
price of statistics that hold in the corrected network; they do not depend on batches. Block by block a pass goes
through one block only.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from weightsmith.errors import CompatibilityError, UsageError
from weightsmith.live import BlockRun, LiveModel, Passage, Source, as_torch
from weightsmith.progress import Progress
from weightsmith.statistics.data_run import DataRun
from weightsmith.statistics.data_steps import Asking, Step, grouped_steps
from weightsmith.statistics.forward_sums import Measured
from weightsmith.statistics.kept_parts import KeptParts
from weightsmith.statistics.samples import Samples
from weightsmith.statistics.units import (
    Moments,
    Unit,
    UnitGoal,
    affine_paths,
    batch_norms,
    put_corrections,
    rescaled_maps,
)
from weightsmith.statistics.wanted import Wanted

KIND = "repair"
_CHANNELS = Wanted(("channels",))
Watching = Callable[[Callable[[Passage], None]], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class RepairParent:
    """A model whose statistics the merged one's are brought to, with its share of the mean."""

    source: Source
    share: float


class _Passed(BaseException):
    """The unit that is measured has been called; what comes behind need not run."""


@dataclass(frozen=True, eq=False)
class RepairRun:
    """Corrects a model, unit by unit, and keeps each correction as a part; `blocks` says how it is run.

    Raises CompatibilityError for a network with nothing to correct, or nothing that a correction could be folded into.
    """

    model: LiveModel
    samples: Samples
    parts: KeptParts
    blocks: bool
    batch_size: int
    memory_bytes: int
    progress: Progress

    def run(self, parents: Sequence[RepairParent]) -> None:
        """Measure the parents, if there are any, then correct the model."""
        if not self.blocks:
            self.model.fill()
        units = dict(enumerate(self._units(parents)))
        stage = self.progress.begin("repairing", len(units) * len(self._steps), "batch")
        if self.blocks:
            with self._by_blocks(self._steps) as run:
                for block in run.blocks():
                    inside = {n: u for n, u in units.items() if _is_in(u.path, block.path)}
                    self._correct(inside, block.watching, block.rehearse, stage)
        else:
            self._correct(units, self._watching, self._rehearse, stage)
        stage.end()

    def _correct(
        self,
        units: Mapping[int, Unit],
        watching: Watching,
        rehearse: Callable[[int], None],
        stage: Progress,
    ) -> None:
        """Correct units by their places, one after the other."""
        for place, unit in units.items():
            if not self.parts.has(KIND, place):
                moments = self._measured(unit, watching, rehearse, stage)
                rows = dict.fromkeys(unit.tensors, moments.count)
                self.parts.put(KIND, place, Measured(unit.correction(self.model, moments), rows))
            kept = self.parts.part(KIND, place)
            put_corrections(self.model, {tensor.name: as_torch(tensor) for tensor in kept.tensors})

    def _measured(
        self, unit: Unit, watching: Watching, rehearse: Callable[[int], None], stage: Progress
    ) -> Moments:
        moments = Moments()

        def told(passage: Passage) -> None:
            if passage.module == unit.path:
                moments.add(unit.rows(passage))
                raise _Passed

        with watching(told):
            for batch in range(len(self._steps)):
                with suppress(_Passed):
                    rehearse(batch)
                stage.advance(1, unit.path)
        return moments

    # Units, in the order of their calls.

    def _units(self, parents: Sequence[RepairParent]) -> Sequence[Unit]:
        norms = {norm.path: norm for norm in batch_norms(self.model)}
        if norms:
            if parents:
                raise UsageError(
                    f"{self.model.name!r} has batch norm, whose running statistics are measured anew instead of "
                    "being brought to those of parents; leave the parents out."
                )
            return [norms[path] for path in self._called(norms)[0]]
        if not parents:
            raise CompatibilityError(
                f"{self.model.name!r} has no batch norm whose statistics could be measured anew; say with --parent "
                "which models it was merged from, and its units are brought to theirs."
            )
        paths, with_head = self._called(affine_paths(self.model))
        paths = paths[: len(paths) - with_head]
        if not paths:
            raise CompatibilityError(
                f"{self.model.name!r} runs no hidden layer whose units could be brought to those of its parents."
            )
        # What cannot be corrected shows before parents are measured.
        maps = rescaled_maps(self.model, paths)
        goals = self._goals(parents)
        return [replace(own, goal=goals[own.weight]) for own in maps]

    def _called(self, paths: Collection[str]) -> tuple[list[str], bool]:
        """Those of the paths that a batch calls, in their order, and whether the last gives the network's logits."""
        calls: list[str] = []
        asked: list[bool] = []
        root = self.model.module.register_forward_pre_hook(lambda *_: asked.append(True))

        def told(passage: Passage) -> None:
            if passage.module in paths:
                calls.append(passage.module)

        try:
            if self.blocks:
                with self._by_blocks(self._steps[:1]) as run:
                    for block in run.blocks():
                        with block.watching(told):
                            block.run()
            else:
                with self._watching(told):
                    self._rehearse(0)
        finally:
            root.remove()
        twice = next((path for path in calls if calls.count(path) > 1), None)
        if twice is not None:
            raise CompatibilityError(
                f"{self.model.name!r} runs {twice} more than once, so there are no statistics that one correction of "
                "it could bring about."
            )
        return calls, bool(asked) and self.model.kind.has_logits

    def _goals(self, parents: Sequence[RepairParent]) -> dict[str, UnitGoal]:
        """The weighted means of the parents' means, and of their deviations, by the names of weights."""
        merged = self.model.source
        sums: dict[str, UnitGoal] = {}
        for number, parent in enumerate(parents):
            self.model.swap(parent.source)
            for name, own in self._channels(str(number)).items():
                mean, deviation = own.mean * parent.share, own.deviation * parent.share
                if name in sums:
                    mean, deviation = sums[name].mean + mean, sums[name].deviation + deviation
                sums[name] = UnitGoal(mean, deviation)
        self.model.swap(merged)
        return sums

    def _channels(self, name: str) -> dict[str, UnitGoal]:
        """Mean and deviation of what every linear map of the model gives, by its weight."""
        parts = self.parts.of_model(name)
        run = DataRun(
            self.model,
            self.samples,
            _CHANNELS,
            parts,
            self.batch_size,
            self.memory_bytes,
            self.progress,
        )
        if self.blocks:
            run.by_blocks()
        elif not parts.has("channels", 0):
            run.whole()
        found = {tensor.name: tensor for part in parts.of("channels") for tensor in part.tensors}
        names = [name.removesuffix("::output_mean") for name in found if name.endswith("_mean")]
        device = self.model.device
        return {
            name: UnitGoal(
                as_torch(found[f"{name}::output_mean"]).to(device).double(),
                as_torch(found[f"{name}::output_variance"]).to(device).double().sqrt(),
            )
            for name in names
        }

    # Running.

    @cached_property
    def _steps(self) -> list[Step]:
        groups = grouped_steps(self.samples, _CHANNELS, self.batch_size, self.model.device)
        return [step for group in groups for step in group]

    def _by_blocks(self, steps: Sequence[Step]) -> BlockRun:
        asking = Asking(self.model, self.samples)
        folder = self.parts.activations
        return BlockRun(self.model, asking, steps, memory_bytes=self.memory_bytes, folder=folder)

    def _rehearse(self, batch: int) -> None:
        import torch

        with torch.no_grad():
            Asking(self.model, self.samples)(self._steps[batch])

    def _watching(self, told: Callable[[Passage], None]) -> AbstractContextManager[Any]:
        return self.model.watching(list(self.model.source.tensors), told)


def _is_in(path: str, block: str) -> bool:
    return f"{path}.".startswith(f"{block}.")
