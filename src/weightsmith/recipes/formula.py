"""What a resolved recipe says: for every output tensor, the formula that makes it from stored tensors.

This is all that the engine needs to know of recipes. A formula is a tree whose leaves are tensors of
checkpoints; every number in it is final: gradients, filters, rules and defaults of the recipe have been
applied for that tensor.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from weightsmith.findings import Finding
from weightsmith.tensors.dtypes import DType
from weightsmith.tensors.equal_magnitudes import EqualMagnitudes
from weightsmith.tensors.records import record

if TYPE_CHECKING:
    from weightsmith.checkpoints import Checkpoint
    from weightsmith.recipes.recipe import Recipe
    from weightsmith.vocabularies.outcome import Outcome

Assignments = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A stored tensor: `checkpoint` is a key of `Resolved.checkpoints`, `tensor` a name in it."""

    checkpoint: str
    tensor: str


@dataclass(frozen=True, slots=True)
class Modification:
    """A modifier of the experts, with the parameters that the recipe gives."""

    modifier: str
    parameters: Assignments


@dataclass(frozen=True, slots=True)
class Stored:
    """What was measured on one expert at a tensor: leaves of its statistics file, one or one per sample.

    Numbers are divided by `divisor` to be means over samples; `dtype` is what they were rounded to.
    """

    kind: str
    leaves: tuple[Leaf, ...]
    shape: tuple[int, ...]
    divisor: float
    dtype: DType = DType.FLOAT32


@record
@dataclass(frozen=True, slots=True)
class Place:
    """Where in the result of its own recipe a tensor is merged: what a method may depend on, besides numbers.

    `role` is the kind (`attention.q`), `layer` the number of its block (None outside the stacks) of `layers` blocks in
    the stack with the name prefix `stack`. `input_first`: a matrix stored as (inputs, outputs).
    """

    name: str
    shape: tuple[int, ...]
    role: str
    layer: int | None
    layers: int
    stack: str | None
    input_first: bool


@record
@dataclass(frozen=True, slots=True)
class Merge:
    """A method applied to a base and experts at a `place` of the result.

    A recipe inside a recipe may be used at other places, more than once or not at all; its merges stay where they are
    in its own result, with the random numbers and statistics that it has on its own. `seed` is that of random masks.
    `shared` and `per_expert` hold only what the recipe gives (the preset's defaults fill the rest when the
    method is built). `labels` name the experts for their random streams. `scope_id` is the same for all
    tensors of one merge of the recipe, so statistics over "the whole model" run over the tensors of one
    scope. `modifiers` change the experts, one after the other, before the method sees them; `origin` is the base
    that they measure task vectors from, None where there is none. `statistics` has one entry for each expert, or none.
    `stored` is the coarsest dtype in which one of the experts was stored.
    """

    method: str
    preset: str
    shared: Assignments
    base: Formula | None
    experts: tuple[Formula, ...]
    per_expert: tuple[Assignments, ...]
    labels: tuple[str, ...]
    scope_id: str
    place: Place
    seed: int
    modifiers: tuple[Modification, ...] = ()
    origin: Formula | None = None
    statistics: tuple[Stored, ...] = ()
    stored: DType = DType.FLOAT32
    # Planning asks for them some ten times for each tensor.
    _leaves: tuple[Leaf, ...] | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """Every stored tensor that is read, in the order of reading, each once."""
        if self._leaves is None:
            found = dict.fromkeys(leaf for inner in inner_formulas(self) for leaf in _leaves(inner))
            object.__setattr__(self, "_leaves", tuple(found))
        assert self._leaves is not None
        return self._leaves


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


def inner_formulas(formula: Formula) -> tuple[Formula, ...]:
    """The formulas that a formula computes from, the base first."""
    if isinstance(formula, Cast):
        return (formula.inner,)
    if isinstance(formula, Sum):
        return tuple(term for _, term in formula.terms)
    if isinstance(formula, Merge):
        first = formula.origin if formula.base is None else formula.base
        statistics = [leaf for stored in formula.statistics for leaf in stored.leaves]
        return (*(() if first is None else (first,)), *formula.experts, *statistics)
    return formula.leaves if isinstance(formula, Same) else ()


def distinct_leaves(formula: Formula) -> tuple[Leaf, ...]:
    """Every stored tensor that a formula reads, in the order of reading, each once."""
    if isinstance(formula, Merge):
        return formula.leaves
    return tuple(dict.fromkeys(_leaves(formula)))


def _leaves(formula: Formula) -> Iterator[Leaf]:
    if isinstance(formula, Leaf):
        yield formula
    elif isinstance(formula, Merge):
        yield from formula.leaves
    else:
        for inner in inner_formulas(formula):
            yield from _leaves(inner)


def merges_in(formula: Formula) -> Iterator[Merge]:
    """Every merge of a formula, those that others compute from first."""
    for inner in inner_formulas(formula):
        yield from merges_in(inner)
    if isinstance(formula, Merge):
        yield formula


class Form(enum.Enum):
    """How the numbers of an output tensor are stored: all of them, as one bit each, or one of them for all."""

    DENSE = "dense"
    BITS = "bits"
    CONSTANT = "constant"


@record
@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One tensor of the result.

    `role` is the kind (`attention.q`); `layer` the number of its block in the output (None outside the
    stacks) of `layers` blocks; `position` the place in depth at which gradients were read, 0 at the first
    block and 1 at the last of its slice. `tied_to` names the output that this tensor shares its values with:
    the same formula, the same random numbers, stored again under its own name. `input_first`: a matrix stored as
    (inputs, outputs). `stack` is the name prefix of the stack that the block belongs to.

    A bundle's tensor is stored in parts: `part_of` is the tensor that this one is a part of, and `form` how it is
    stored. `dtype` and `shape` are those of what the formula gives; masks are 0 and 1.
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
    input_first: bool = False
    stack: str | None = None
    part_of: str | None = None
    form: Form = Form.DENSE

    @property
    def site(self) -> str:
        """The tensor whose random numbers and statistics this one shares."""
        return self.tied_to or self.part_of or self.name

    @property
    def stored_dtype(self) -> DType:
        """The dtype in the file."""
        return DType.UINT8 if self.form is Form.BITS else self.dtype

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape in the file."""
        if self.form is Form.BITS:
            return (-(-math.prod(self.shape) // 8),)
        return () if self.form is Form.CONSTANT else self.shape


@dataclass(frozen=True, slots=True)
class BundleTensor:
    """One tensor of a bundle's members: its dtype, the base's leaf if that is referred to, and whether it is coded
    and has rescalers.
    """

    dtype: DType
    base: Leaf | None
    coded: bool
    scaled: bool


@dataclass(frozen=True, slots=True)
class TaskBundle:
    """What a recipe with `bundle:` makes: the method and its parameters, labels of base and tasks, tensors by name."""

    method: str
    parameters: Mapping[str, Any]
    base: str
    tasks: tuple[str, ...]
    stores_base: bool
    tensors: Mapping[str, BundleTensor]


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
    promoted dtype of its inputs. `measured` are tensors of recipes inside the recipe that no output is made of, over
    which statistics of the whole of such a result run too. `statistics` are the labels of statistics files among the
    checkpoints, `equal_magnitudes` decides what thresholds over the model take of equals, and `vocabulary`
    what becomes of tokens and tables. `findings` with severity error must stop the plan.
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
    bundle: TaskBundle | None = None
    stack: str | None = None
    statistics: tuple[str, ...] = ()
    vocabulary: Outcome | None = None
    measured: tuple[OutputTensor, ...] = ()
    equal_magnitudes: EqualMagnitudes = EqualMagnitudes.HASH
