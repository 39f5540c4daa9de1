"""The tensors of a merge, each computed when it is read, for those who run what is there of it so far."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from weightsmith.engine.outputs.memory_stores import MemoryStore
from weightsmith.engine.planning.plan import Plan, require_runnable
from weightsmith.engine.planning.planned_tensors import PlannedTensor
from weightsmith.engine.running.job_facts import JobSettings
from weightsmith.engine.running.run import ModelResults, model_results, write_tensors
from weightsmith.engine.running.scheduler import Scheduler
from weightsmith.engine.running.scratch import Scratch
from weightsmith.errors import RecipeError
from weightsmith.progress import Silence
from weightsmith.tensors import OPEN_FILES, DType, LazyTensor, MemoryTensor, Shaped


class LazyMerge:
    """A plan's tensors by name, with the bytes that a run of the plan gives them.

    One is computed when it is read, from what its inputs hold then, and kept until another one is read. Not for several
    threads at a time. Raises RecipeError for a plan with errors, and for one whose result is no model.
    """

    def __init__(self, plan: Plan) -> None:
        require_runnable(plan)
        if plan.output.no_model or not plan.output.merges_models:
            raise RecipeError(plan.output.no_model or "Only merges of models give one model.")
        self._plan = plan
        self._planned = {tensor.output.name: tensor for tensor in plan.tensors}
        self._kept: MemoryTensor | None = None

    @cached_property
    def tensors(self) -> Mapping[str, LazyTensor]:
        """The tensors by the names that the output has for them."""
        return {
            name: _Merged(name, tensor.output.dtype, tensor.output.shape, self)
            for name, tensor in self._planned.items()
        }

    def computed(self, name: str) -> MemoryTensor:
        """A tensor, computed now unless it was the last one."""
        if self._kept is None or self._kept.name != name:
            self._kept = None
            self._kept = self._compute(self._planned[name])
        return self._kept

    def _compute(self, tensor: PlannedTensor) -> MemoryTensor:
        store = MemoryStore(self._plan.layout, lazy=True)
        try:
            write_tensors(
                self._plan,
                [tensor],
                store,
                self._settings,
                self._scheduler,
                self._results,
                lambda _record: None,
                Silence(),
            )
        finally:
            OPEN_FILES.close()
        return store.tensors[tensor.output.name]

    @cached_property
    def _settings(self) -> JobSettings:
        scratch = Scratch(Path(tempfile.gettempdir()))
        return JobSettings(self._plan.backend.load(), self._plan.tile_elements, scratch)

    @cached_property
    def _scheduler(self) -> Scheduler:
        return Scheduler(self._plan.threads, self._plan.window)

    @cached_property
    def _results(self) -> ModelResults:
        """Statistics of the whole model, where a tensor goes by some."""
        return model_results(self._plan, self._settings, self._scheduler, set(), Silence())


@dataclass(frozen=True, slots=True, eq=False)
class _Merged(Shaped):
    name: str
    dtype: DType
    shape: tuple[int, ...]
    merge: LazyMerge

    @property
    def location(self) -> str:
        return f"merged tensor {self.name!r}"

    def read_into(self, start: int, stop: int, buffer: memoryview) -> None:
        self.merge.computed(self.name).read_into(start, stop, buffer)
