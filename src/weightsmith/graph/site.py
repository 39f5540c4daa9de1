"""Where a method is applied: the facts of one tensor of a merge, and the names of what is measured over the model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from weightsmith.graph.graph import Extent, Scope, Value, uniform
from weightsmith.graph.model_statistics import ModelStatistic
from weightsmith.graph.random import stream_key
from weightsmith.tensors import DType, Place


@dataclass(frozen=True, slots=True)
class Statistic:
    """What was measured on an expert at this tensor and stored, as means over samples.

    Of kinds fisher and adam there is one value per element, of kind gradients one per element and sample. A Gram
    matrix (kind gram) has a `shape` of its own, (inputs, inputs) or a stack of such, and goes into `whole` nodes only.
    """

    kind: str
    values: tuple[Value, ...]
    shape: tuple[int, ...]
    stored: DType = DType.FLOAT32

    @property
    def value(self) -> Value:
        """The only value, or the first sample's."""
        return self.values[0]


@dataclass(frozen=True, slots=True)
class Site:
    """Where a method is being applied: the facts of one output tensor that a formula may depend on.

    `place` is that in the result of the merge. `statistics` has one entry for each expert, or is empty where this
    tensor has none. `stored` is the coarsest dtype that an expert was stored in. `merge` is the same for all tensors of
    one merge of a recipe, over which statistics of the model run.
    """

    place: Place
    shape: tuple[int, ...]
    seed: int = 0
    labels: tuple[str, ...] = ()
    statistics: tuple[Statistic, ...] = ()
    stored: DType = DType.FLOAT32
    merge: str = ""

    @property
    def name(self) -> str:
        """The tensor's name."""
        return self.place.name

    @property
    def role(self) -> str:
        """What it is for, as recipes write it: `attention.q`."""
        return self.place.role

    @property
    def layer(self) -> int | None:
        """The number of its block among `layers`; None outside the stacks."""
        return self.place.layer

    @property
    def layers(self) -> int:
        """How many blocks its stack has."""
        return self.place.layers

    @property
    def input_first(self) -> bool:
        """Whether a matrix is stored as (inputs, outputs), the transpose of the usual."""
        return self.place.input_first

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def row_length(self) -> int:
        """Length of the last axis; a 0-d tensor is one row of one element."""
        return self.shape[-1] if self.shape else 1

    def uniform(self, expert: int) -> Value:
        """The uniform random numbers of the `expert`-th input at this tensor, keyed by seed, model and tensor name."""
        return uniform(stream_key(self.seed, self._label(expert), self.name))

    def over_model(self, name: str, expert: int | None = None, *parameters: Any) -> ModelStatistic:
        """The extent of a reduction over all tensors of this merge, called `name`, of one of the experts or of all.

        `parameters` are those that make it another statistic where they have other values (see `ModelStatistic`).
        """
        return ModelStatistic(self.merge, name, self.identity(expert), parameters)

    def over(self, scope: str, name: str, expert: int | None = None, *parameters: Any) -> Extent:
        """The extent that a parameter calls "row", "tensor" or "model"; the rest names it as in `over_model`."""
        if scope == "model":
            return self.over_model(name, expert, *parameters)
        return {"row": Scope.ROW, "tensor": Scope.TENSOR}[scope]

    def over_layer(self, layer: int, name: str, expert: int | None = None) -> ModelStatistic:
        """The extent of a reduction over all tensors of a layer of this stack that is known throughout the stack."""
        where, counts = (self.place.stack or "", layer), self.layer == layer
        return ModelStatistic(self.merge, name, self.identity(expert), (), where, counts)

    def _label(self, expert: int) -> str:
        return self.labels[expert] if expert < len(self.labels) else f"expert-{expert}"

    def identity(self, expert: int | None) -> str:
        """What tells an expert from the others of the merge: its label, which is the same where others are missing."""
        if expert is None:
            return ""
        label = self._label(expert)
        return label if self.labels.count(label) < 2 else f"{label}#{expert}"
