"""What a reduction over the whole model is called, so that those of different tensors are known to be one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True)
class ModelStatistic:
    """The name of a statistic of the whole model: which merge of the recipe measures what, of which expert.

    All tensors whose reductions have equal names take part in one statistic, however differently their graphs are
    built. `parameters` are the numbers that tell statistics apart where a recipe varies them between tensors, such as
    the share that a threshold selects: tensors of one share have one threshold. With a `layer` (prefix of its stack
    and number) every tensor of the model knows the statistic, and only those that `counts` is true for add to it.
    """

    merge: str
    name: str
    expert: str = ""
    parameters: tuple[Any, ...] = ()
    layer: tuple[str, int] | None = None
    counts: bool = field(default=True, compare=False, repr=False)

    def part(self, name: str) -> ModelStatistic:
        """The name of one of several numbers that a function measures for this statistic."""
        return replace(self, name=f"{self.name}: {name}")
