"""What a resolved recipe says: for every output tensor, the formula that makes it from stored tensors.

This is all that the engine needs to know of recipes. A formula is a tree whose leaves are tensors of
checkpoints; every number in it is final: gradients, filters, rules and defaults of the recipe have been
applied for that tensor. A free number stands there as the node that it is in graphs.

Every kind of formula names its `parts`, in the order in which they are read, and those of them that are weights of
`models`; the functions at the end of the formulas walk them. `likeness` is equal for formulas that differ in nothing
but the names of the tensors they read.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

from weightsmith.findings import Finding
from weightsmith.graph import EqualMagnitudes, Scalar
from weightsmith.recipes.language.modifier_calls import Assignments, Modification
from weightsmith.tensors import DType, Place, record

if TYPE_CHECKING:
    from weightsmith.checkpoints import Checkpoint
    from weightsmith.recipes.language.recipe import Recipe
    from weightsmith.vocabularies import Outcome


class Leaf(NamedTuple):
    """A stored tensor: `checkpoint` is a key of `Resolved.checkpoints`, `tensor` a name in it."""

    checkpoint: str
    tensor: str

    @property
    def parts(self) -> tuple[Formula, ...]:
        """None: it is read as it is."""
        return ()

    @property
    def models(self) -> tuple[Formula, ...]:
        """None but itself."""
        return ()

    @property
    def likeness(self) -> Hashable:
        """The checkpoint."""
        return self.checkpoint


@dataclass(frozen=True, slots=True)
class MeasuredLeaves:
    """What was measured on one expert at a tensor: leaves of its statistics file, one or one per sample.

    Numbers are divided by `divisor` to be means over samples; `dtype` is what they were rounded to. A mask that is one
    number everywhere has no leaf but this `constant`.
    """

    kind: str
    leaves: tuple[Leaf, ...]
    shape: tuple[int, ...]
    divisor: float
    dtype: DType = DType.FLOAT32
    constant: float | None = None


@record
@dataclass(frozen=True, slots=True)
class Merge:
    """A method applied to a base and experts of a `shape` at a `place` of the result of its own recipe.

    A recipe inside a recipe may be used at other places, more than once or not at all; its merges stay where they are
    in its own result, with the random numbers and statistics that it has on its own. `seed` is that of random masks.
    `shared` and `per_expert` hold only what the recipe gives (the preset's defaults fill the rest when the
    method is built). `labels` name the experts for their random streams. `scope_id` is the same for all
    tensors of one merge of the recipe, so statistics over "the whole model" run over the tensors of one
    scope. `modifiers` change the experts, one after the other, before the method sees them; `origin` is the base
    that they measure task vectors from, None where there is none. `statistics` has one entry for each expert (one for
    the base, where they are the base's), or none; `modifier_statistics` the like for each modifier.
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
    shape: tuple[int, ...]
    seed: int
    modifiers: tuple[Modification, ...] = ()
    origin: Formula | None = None
    statistics: tuple[MeasuredLeaves, ...] = ()
    modifier_statistics: tuple[tuple[MeasuredLeaves, ...], ...] = ()
    stored: DType = DType.FLOAT32
    # Planning asks for them some ten times for each tensor.
    _leaves: tuple[Leaf, ...] | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def leaves(self) -> tuple[Leaf, ...]:
        """Every stored tensor that is read, in the order of reading, each once."""
        if self._leaves is None:
            object.__setattr__(self, "_leaves", _distinct(self.parts))
        assert self._leaves is not None
        return self._leaves

    @property
    def parts(self) -> tuple[Formula, ...]:
        """The base, or what task vectors are measured from, the experts, and their statistics."""
        first = self.origin if self.base is None else self.base
        statistics = [leaf for stored in self.measured for leaf in stored.leaves]
        return (*(() if first is None else (first,)), *self.experts, *statistics)

    @property
    def measured(self) -> tuple[MeasuredLeaves, ...]:
        """All statistics, the method's first."""
        return (*self.statistics, *(one for own in self.modifier_statistics for one in own))

    @property
    def models(self) -> tuple[Formula, ...]:
        """Base, origin and experts."""
        return tuple(f for f in (self.base, self.origin, *self.experts) if f is not None)

    @property
    def likeness(self) -> Hashable:
        """All but the names of tensors, and the place as far as a method's graph may depend on it."""
        at = self.place
        return (
            *(self.method, self.preset, self.shared, self.per_expert, self.modifiers),
            *(self.labels, self.scope_id, self.seed, self.stored),
            None if self.base is None else self.base.likeness,
            None if self.origin is None else self.origin.likeness,
            tuple([expert.likeness for expert in self.experts]),
            tuple([(s.kind, s.shape, s.divisor, len(s.leaves), s.constant) for s in self.measured]),
            tuple([len(own) for own in self.modifier_statistics]),
            *(self.shape, at.kind, at.layer is None, at.layers, at.input_first),
        )


@dataclass(frozen=True, slots=True)
class Sum:
    """sum_i c_i x_i, added from left to right; a coefficient may be a free number, or arithmetic on some."""

    terms: tuple[tuple[float | Scalar, Formula], ...]

    @property
    def parts(self) -> tuple[Formula, ...]:
        """The terms."""
        return tuple(term for _, term in self.terms)

    @property
    def models(self) -> tuple[Formula, ...]:
        """The terms."""
        return self.parts

    @property
    def likeness(self) -> Hashable:
        """Coefficients and terms."""
        return tuple((c, term.likeness) for c, term in self.terms)


@dataclass(frozen=True, slots=True)
class Same:
    """Tensors that must agree byte for byte, of which the first is copied: integers and bools without a base."""

    leaves: tuple[Leaf, ...]

    @property
    def parts(self) -> tuple[Formula, ...]:
        """The tensors."""
        return self.leaves

    @property
    def models(self) -> tuple[Formula, ...]:
        """The tensors."""
        return self.leaves

    @property
    def likeness(self) -> Hashable:
        """The checkpoints."""
        return tuple(leaf.checkpoint for leaf in self.leaves)


@dataclass(frozen=True, slots=True)
class Cast:
    """`inner` rounded to `dtype` before anything else is done with it."""

    dtype: DType
    inner: Formula

    @property
    def parts(self) -> tuple[Formula, ...]:
        """What is rounded."""
        return (self.inner,)

    @property
    def models(self) -> tuple[Formula, ...]:
        """What is rounded."""
        return (self.inner,)

    @property
    def likeness(self) -> Hashable:
        """The dtype and what is rounded."""
        return self.dtype, self.inner.likeness


Formula = Leaf | Merge | Sum | Same | Cast


def formulas_in(formula: Formula) -> Iterator[Formula]:
    """A formula and all that it computes from, parts before what is made of them."""
    for part in formula.parts:
        yield from formulas_in(part)
    yield formula


def distinct_leaves(formula: Formula) -> tuple[Leaf, ...]:
    """Every stored tensor that a formula reads, in the order of reading, each once."""
    if isinstance(formula, Merge):
        return formula.leaves
    if isinstance(formula, Leaf):
        return (formula,)
    return _distinct(formula.parts)


def _distinct(formulas: Iterable[Formula]) -> tuple[Leaf, ...]:
    found: dict[Leaf, None] = {}
    for formula in formulas:
        if isinstance(formula, Leaf):
            found[formula] = None
        else:
            found.update(dict.fromkeys(distinct_leaves(formula)))
    return tuple(found)


def merges_in(formula: Formula) -> Iterator[Merge]:
    """Every merge of a formula, those that others compute from first."""
    return (f for f in formulas_in(formula) if isinstance(f, Merge))


def models_in(formula: Formula) -> frozenset[str]:
    """The labels of the checkpoints whose weights a formula merges; those of statistics are not among them."""
    if isinstance(formula, Leaf):
        return frozenset((formula.checkpoint,))
    return frozenset().union(*map(models_in, formula.models))


def first_leaf(formula: Formula) -> Leaf:
    """The stored tensor that a formula stands for where one has to: of a merge that of its first expert."""
    while not isinstance(formula, Leaf):
        formula = formula.experts[0] if isinstance(formula, Merge) else formula.parts[0]
    return formula


@record
@dataclass(frozen=True, slots=True)
class OutputTensor:
    """One tensor of a result; a checkpoint is seen as a result that is made of its own tensors alone.

    `place` is that in the result, `dtype` what it counts as: a leaf that is computed while it is read may be wider
    (`Checkpoint.stored_as`). `tied_to` names the output that this tensor shares its values with: the same formula, the
    same random numbers, stored again under its own name.
    """

    place: Place
    formula: Formula
    dtype: DType
    shape: tuple[int, ...]
    tied_to: str | None = None

    @property
    def name(self) -> str:
        """Its name in the result."""
        return self.place.name

    def renamed(self, name: str) -> OutputTensor:
        """The same under another name."""
        return replace(self, place=replace(self.place, name=name))


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

    `outputs` are in the config source's file order. `checkpoints` maps labels to opened checkpoints; `config_source`
    and `base` are labels. `layer_sources[k]` is the config source's layer that output layer k takes its place from
    where the result has other layers than the config source (None where the layers are the config source's own), and
    `stack` the name prefix of those layers. `out_dtype` is what the recipe asks for, None where each tensor keeps the
    promoted dtype of its inputs. `measured` are tensors of recipes inside the recipe that no output is made of, over
    which statistics of the whole of such a result run too. `statistics` are the labels of statistics files among the
    checkpoints, `equal_magnitudes` decides what thresholds over the model take of equals, and `vocabulary` what becomes
    of tokens and tables. `findings` with severity error must stop the plan.
    """

    outputs: tuple[OutputTensor, ...]
    checkpoints: Mapping[str, Checkpoint]
    config_source: str
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
    statistics: tuple[str, ...] = ()
    vocabulary: Outcome | None = None
    measured: tuple[OutputTensor, ...] = ()
    equal_magnitudes: EqualMagnitudes = EqualMagnitudes.HASH
