"""What a resolved recipe says: for every output tensor, the formula that makes it from stored tensors.

This is all that the engine needs to know of recipes. A formula is a tree whose leaves are tensors of
checkpoints; every number in it is final: gradients, filters, rules and defaults of the recipe have been
applied for that tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weightsmith.findings import Finding
from weightsmith.tensors.dtypes import DType

if TYPE_CHECKING:
    from weightsmith.checkpoints import Checkpoint
    from weightsmith.recipes.recipe import Recipe

Assignments = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A stored tensor: `checkpoint` is a key of `Resolved.checkpoints`, `tensor` a name in it."""

    checkpoint: str
    tensor: str


@dataclass(frozen=True, slots=True)
class Merge:
    """A method applied to a base and experts.

    `shared` and `per_expert` hold only what the recipe gives (the preset's defaults fill the rest when the
    method is built). `labels` name the experts for their random streams. `scope_id` is the same for all
    tensors of one merge of the recipe, so statistics over "the whole model" run over the tensors of one
    scope.
    """

    method: str
    preset: str
    shared: Assignments
    base: Formula | None
    experts: tuple[Formula, ...]
    per_expert: tuple[Assignments, ...]
    labels: tuple[str, ...]
    scope_id: str


@dataclass(frozen=True, slots=True)
class Sum:
    """sum_i c_i x_i, added from left to right."""

    terms: tuple[tuple[float, Formula], ...]


@dataclass(frozen=True, slots=True)
class Same:
    """Tensors that must agree byte for byte, of which the first is copied: integers and bools without a base."""

    leaves: tuple[Leaf, ...]


@dataclass(frozen=True, slots=True)
class Cast:
    """`inner` rounded to `dtype` before anything else is done with it."""

    dtype: DType
    inner: Formula


Formula = Leaf | Merge | Sum | Same | Cast


@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One tensor of the result.

    `role` is the kind (`attention.q`); `layer` the number of its block in the output (None outside the
    stacks) of `layers` blocks; `position` the place in depth at which gradients were read, 0 at the first
    block and 1 at the last of its slice. `tied_to` names the output that this tensor shares its values with:
    the same formula, the same random numbers, stored again under its own name.
    """

    name: str
    formula: Formula
    dtype: DType
    shape: tuple[int, ...]
    role: str
    layer: int | None
    layers: int
    position: float
    tied_to: str | None = None


@dataclass(frozen=True, slots=True)
class Assertion:
    """A condition on the finished result, checked before it is sealed.

    `kind` is `finite` (no NaN, no infinity in `tensors`), `norm_ratio` (norm of each tensor over that of its reference
    lies in [low, high]) or `equal` (each tensor has the reference's values exactly). `references` has one formula
    for each of `tensors`, and is empty for `finite`. `text` is the clause as the recipe has it.
    """

    kind: str
    text: str
    tensors: tuple[str, ...]
    references: tuple[Formula, ...] = ()
    low: float = 0.0
    high: float = float("inf")


@dataclass(frozen=True, slots=True)
class Resolved:
    """A recipe with every question answered from headers and configurations.

    `outputs` are in the donor's file order. `checkpoints` maps labels to opened checkpoints; `donor` and
    `base` are labels. `layer_sources[k]` is the donor's layer that output layer k takes its place from where
    the result has other layers than the donor (None where the layers are the donor's own), and `stack` the
    name prefix of those layers. `out_dtype` is what the recipe asks for, None where each tensor keeps the
    promoted dtype of its inputs. `findings` with severity error must stop the plan.
    """

    outputs: tuple[OutputTensor, ...]
    checkpoints: Mapping[str, Checkpoint]
    donor: str
    base: str | None
    layer_sources: tuple[int, ...] | None
    findings: tuple[Finding, ...]
    assertions: tuple[Assertion, ...]
    seed: int
    shard_bytes: int
    nonfinite: str
    recipe: Recipe
    out_dtype: DType | None = None
    stack: str | None = None
