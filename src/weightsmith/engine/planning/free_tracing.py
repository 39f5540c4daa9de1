"""Graphs with free numbers in them: traced once, with a value for each number at every evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from weightsmith.engine.planning.trace import Traced, Tracer
from weightsmith.graph import FreeNumber, Node, ValuedPath, following, free_in, refuse_hidden
from weightsmith.recipes import Formula, OutputTensor


@dataclass(frozen=True, slots=True)
class _Known:
    """The graphs of formulas, and what was said of numbers while they were built."""

    formulas: tuple[Formula, ...]
    traced: Traced
    path: ValuedPath
    numbers: Mapping[Node, FreeNumber]


class FreeTracer(Tracer):
    """Traces formulas in which free numbers stand, and keeps a graph while it is that of its formula.

    `values` are those that graphs are built and evaluated for; with others `nearby`, graphs are right around them. A
    graph is built anew where a comparison of numbers has another answer; `traces` counts. `trace` raises
    NumberNotKnown where Python needs a number itself to build a graph: the formula must be given with its value then.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values: Mapping[str, float] = {}
        self.nearby: Mapping[str, float] | None = None
        self.traces = 0
        self._known: dict[tuple[str, ...], _Known] = {}

    def trace(self, *tensors: OutputTensor) -> Traced:
        """See `Tracer.trace`."""
        names = tuple(tensor.name for tensor in tensors)
        formulas = tuple(tensor.formula for tensor in tensors)
        known = self._known.get(names)
        # By identity: formulas that are equal otherwise would ask numbers whether they are.
        if known is None or any(a is not b for a, b in zip(known.formulas, formulas, strict=True)):
            known = self._known[names] = self._traced(tensors, formulas)
        values = {node: self.values[number.name] for node, number in known.numbers.items()}
        return replace(known.traced, numbers=values)

    def forget_changed(self) -> bool:
        """Forget the graphs that are others for the values; whether there are any."""
        changed = [
            n for n, k in self._known.items() if not k.path.is_same_for(self.values, self.nearby)
        ]
        for names in changed:
            del self._known[names]
        return bool(changed)

    def _traced(self, tensors: tuple[OutputTensor, ...], formulas: tuple[Formula, ...]) -> _Known:
        self.traces += 1
        path = ValuedPath(self.values, self.nearby)
        with following(path):
            traced = super().trace(*tensors)
        refuse_hidden([traced.measured])
        return _Known(formulas, traced, path, free_in([traced.measured]))
