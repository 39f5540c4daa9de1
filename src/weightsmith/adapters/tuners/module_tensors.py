"""The tensors that a tuner stores for one module, and what the configuration says about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weightsmith.adapters.adapter import Form, Update
from weightsmith.adapters.effects import Effect, TargetTensor
from weightsmith.adapters.peft_config import PeftConfig
from weightsmith.adapters.updates import finite, require_floats, together, wrong
from weightsmith.tensors import LazyTensor

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ModuleTensors:
    """What is stored for the module at `path`; `modules` has the parts of all modules, `shared` what is of none."""

    path: str
    modules: Mapping[str, Mapping[str, LazyTensor]]
    shared: Mapping[str, LazyTensor]
    config: PeftConfig

    @property
    def parts(self) -> Mapping[str, LazyTensor]:
        """The module's own tensors, by the names of their parts."""
        return self.modules[self.path]

    @property
    def target(self) -> str:
        """The tensor of the base that they change."""
        return f"{self.path}.weight"

    @property
    def form(self) -> Form:
        """The tuner's."""
        return Form(self.config.peft_type.lower())

    def needed(self, *names: str) -> tuple[LazyTensor, ...]:
        """The parts of these names, all floats but for indices; CheckpointError where one is missing or damaged."""
        found = together(self.target, self.parts, names)
        require_floats(*found)
        return found

    def update(
        self,
        sources: tuple[LazyTensor, ...],
        effect: Callable[[TargetTensor], Effect],
        *,
        rank: int | None = None,
        scale: float = 1.0,
    ) -> Update:
        """What the tuner does to the module's weight."""
        return Update(self.target, self.form, sources, rank=rank, scale=scale, effect=effect)


def vector(tensor: LazyTensor) -> Array:
    """All numbers of a tensor in their order; raises what `finite` raises."""
    return finite(tensor).reshape(-1)


def check_shape(tensor: LazyTensor, wanted: tuple[int | None, ...]) -> None:
    """Raise CheckpointError unless a tensor has a shape, in which None stands for any length but 0."""
    shape = tensor.shape
    fits = len(shape) == len(wanted) and 0 not in shape
    if not fits or any(w not in (None, n) for w, n in zip(wanted, shape, strict=True)):
        said = " x ".join("any" if n is None else str(n) for n in wanted)
        raise wrong(
            f"{tensor.location} has the shape {list(shape)} where {said} is expected beside its partners",
            "the adapter was saved in pieces or is damaged, fetch it again",
        )
