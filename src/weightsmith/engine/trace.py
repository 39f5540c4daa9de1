"""From the formula of one output tensor to its value graph."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from weightsmith.errors import CompatibilityError
from weightsmith.methods import modifiers, registry
from weightsmith.recipes.formula import (
    Cast,
    Formula,
    Leaf,
    Merge,
    Modification,
    OutputTensor,
    Same,
    Stored,
    Sum,
)
from weightsmith.tensors.graph import (
    Cut,
    Node,
    Scope,
    Site,
    Statistic,
    Value,
    add_all,
    is_reduction,
    rounded,
    source,
    walk,
)


@dataclass(frozen=True, slots=True)
class Traced:
    """A graph with what it reads: source i of the graph is `sources[i]`.

    `groups` names the model-scope reductions, so that those of different tensors that belong together can be joined.
    """

    output: Value
    sources: tuple[Leaf, ...]
    groups: dict[Node, Hashable]


def distinct_leaves(formula: Formula) -> tuple[Leaf, ...]:
    """Every stored tensor that a formula reads, in the order of reading, each once."""
    return tuple(dict.fromkeys(_leaves(formula)))


def _leaves(formula: Formula) -> Iterator[Leaf]:
    if isinstance(formula, Leaf):
        yield formula
    elif isinstance(formula, Same):
        yield from formula.leaves
    else:
        for part in parts(formula):
            yield from _leaves(part)


def parts(formula: Formula) -> tuple[Formula, ...]:
    """The formulas that a formula computes from, the base first."""
    if isinstance(formula, Cast):
        return (formula.inner,)
    if isinstance(formula, Sum):
        return tuple(term for _, term in formula.terms)
    if isinstance(formula, Merge):
        first = formula.origin if formula.base is None else formula.base
        statistics = [leaf for stored in formula.statistics for leaf in stored.leaves]
        return (*(() if first is None else (first,)), *formula.experts, *statistics)
    return ()


class Tracer:
    """Traces formulas, building each method's object once per distinct set of parameters."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._methods: dict[Hashable, registry.Combine] = {}
        self._modifiers: dict[Modification, modifiers.Modify] = {}

    def formula_value(
        self, formula: Formula, tensor: OutputTensor, read: Callable[[Leaf], Value]
    ) -> Value:
        """The graph of any formula at the place of `tensor`; `read` gives the node of each leaf."""
        return self._value(
            formula,
            tensor,
            {},
            {leaf: read(leaf) for leaf in distinct_leaves(formula)},
            distinct_leaves(formula),
        )

    def trace(self, tensor: OutputTensor) -> Traced:
        """The graph of one output tensor.

        Raises RecipeError if a method refuses its parameters.
        """
        sources = distinct_leaves(tensor.formula)
        groups: dict[Node, Hashable] = {}
        memo: dict[Formula, Value] = {}
        output = self._value(tensor.formula, tensor, groups, memo, sources)
        return Traced(output, sources, groups)

    def _value(
        self,
        formula: Formula,
        tensor: OutputTensor,
        groups: dict[Node, Hashable],
        memo: dict[Formula, Value],
        sources: Sequence[Leaf],
    ) -> Value:
        if formula in memo:
            return memo[formula]
        if isinstance(formula, Leaf):
            result = source(sources.index(formula))
        elif isinstance(formula, Cast):
            result = rounded(
                self._value(formula.inner, tensor, groups, memo, sources), formula.dtype
            )
        elif isinstance(formula, Sum):
            terms = [(c, self._value(f, tensor, groups, memo, sources)) for c, f in formula.terms]
            result = add_all([v if c == 1.0 else v * c for c, v in terms])
        elif isinstance(formula, Merge):
            result = self._merge(formula, tensor, groups, memo, sources)
        else:
            raise CompatibilityError(
                f"Tensor {tensor.name!r} is copied and has no formula to compute."
            )
        memo[formula] = result
        return result

    def _merge(
        self,
        merge: Merge,
        tensor: OutputTensor,
        groups: dict[Node, Hashable],
        memo: dict[Formula, Value],
        sources: Sequence[Leaf],
    ) -> Value:
        base = (
            None if merge.base is None else self._value(merge.base, tensor, groups, memo, sources)
        )
        experts = [self._value(expert, tensor, groups, memo, sources) for expert in merge.experts]
        site = Site(
            name=tensor.site,
            shape=tensor.shape,
            role=tensor.role,
            layer=tensor.layer,
            layers=tensor.layers,
            seed=self._seed,
            labels=merge.labels,
            input_first=tensor.input_first,
            stack=tensor.stack or "",
            statistics=tuple(_statistic(stored, sources) for stored in merge.statistics),
            stored=merge.stored,
        )
        origin = (
            None
            if merge.origin is None
            else self._value(merge.origin, tensor, groups, memo, sources)
        )
        chain = [self._modifier(m, tensor.name) for m in merge.modifiers]
        changed = modifiers.modified(chain, origin, experts, site)
        result = self._method(merge, tensor.name).combine(base, changed, site)
        # A merge that is merged further is one model, however differently its tensors come about.
        inner: dict[Node, str] = {
            value: label
            for formula, value, label in zip(merge.experts, experts, merge.labels, strict=False)
            if isinstance(formula, Merge)
        }
        alike: Counter[str] = Counter()
        for node in walk([result]):
            if (
                is_reduction(node)
                and getattr(node, "scope", None) is Scope.MODEL
                and node not in groups
            ):
                key = signature(node, sources, inner)
                groups[node] = (merge.scope_id, key, alike[key])
                alike[key] += 1
        return result

    def _modifier(self, modification: Modification, name: str) -> modifiers.Modify:
        if modification not in self._modifiers:
            spec = modifiers.get(modification.modifier)
            self._modifiers[modification] = spec.build(
                dict(modification.parameters), where=f"tensor {name!r}"
            )
        return self._modifiers[modification]

    def _method(self, merge: Merge, name: str) -> registry.Combine:
        key = (merge.method, merge.preset, merge.shared, merge.per_expert)
        if key not in self._methods:
            spec = registry.get(merge.method)
            self._methods[key] = spec.build(
                dict(merge.shared),
                [dict(p) for p in merge.per_expert],
                preset=merge.preset,
                where=f"tensor {name!r}",
            )
        return self._methods[key]


def _statistic(stored: Stored, sources: Sequence[Leaf]) -> Statistic:
    values = [source(sources.index(leaf)) for leaf in stored.leaves]
    if stored.divisor != 1.0:
        values = [v / stored.divisor for v in values]
    return Statistic(stored.kind, tuple(values), stored.shape)


def signature(
    node: Node, sources: Sequence[Leaf], inner: Mapping[Node, str] = MappingProxyType({})
) -> str:
    """A digest of what a reduction computes, the same for every tensor that computes it from the same checkpoints.

    `inner` names nodes that are taken as they are, whatever they are computed from.
    """
    label = next((a for a in node.attributes if isinstance(a, str)), None)
    if label is not None:
        return label
    # Weights may differ from tensor to tensor of one statistic; how many elements a cut selects may not.
    asked = {id(part) for part in walk(node.inputs[1:])} if isinstance(node, Cut) else set()
    digests: dict[int, str] = {}
    for part in walk([node], inner):
        if part in inner:
            digests[id(part)] = f"model {inner[part]}"
            continue
        if isinstance(part, modifiers.Named) and part.name:
            digests[id(part)] = part.name
            continue
        if part.op == "source":
            facts: tuple[object, ...] = (sources[part.attributes[0]].checkpoint,)
        elif part.op == "uniform" or (part.op == "literal" and id(part) not in asked):
            facts = ()
        else:
            facts = tuple(getattr(a, "__qualname__", a) for a in part.attributes)
        text = repr((part.op, facts, [digests[id(child)] for child in part.inputs]))
        digests[id(part)] = hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
    return digests[id(node)]
