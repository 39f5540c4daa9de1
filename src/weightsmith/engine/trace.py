"""From the formula of one output tensor to its value graph."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
from weightsmith.tensors.equal_graphs import shared_graph
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
    """A graph with what it reads: source i of the graph is `sources[i]`. Equal graphs are one object.

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


@dataclass(slots=True)
class _Place:
    """One output tensor while it is traced: the value of each formula, and the names of statistics of the model."""

    tensor: OutputTensor
    sources: tuple[Leaf, ...]
    values: dict[Formula, Value] = field(default_factory=dict)
    groups: dict[Node, Hashable] = field(default_factory=dict)
    _twins: tuple[Value, dict[Node, Node]] | None = None

    def twins(self, result: Value) -> dict[Node, Node]:
        """See `shared_graph`; the last one is kept, since most recipes are one merge."""
        if self._twins is None or self._twins[0] is not result:
            self._twins = result, shared_graph(result)
        return self._twins[1]

    def group(self, scope: Hashable, result: Value, inner: Mapping[Node, str]) -> None:
        """Name the statistics that a merge adds; `inner` are its models that are merges, with their labels."""
        twins = self.twins(result)
        added = {
            twin: node
            for node, twin in twins.items()
            if is_reduction(node)
            and getattr(node, "scope", None) is Scope.MODEL
            and node not in self.groups
        }
        if added:
            named = statistic_names(
                tuple(added),
                tuple(leaf.checkpoint for leaf in self.sources),
                tuple((twins[node], label) for node, label in inner.items() if node in twins),
            )
            self.groups.update((added[twin], (scope, *name)) for twin, name in named)


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
        sources = distinct_leaves(formula)
        return self._value(formula, _Place(tensor, sources, {leaf: read(leaf) for leaf in sources}))

    def trace(self, tensor: OutputTensor) -> Traced:
        """The graph of one output tensor.

        Raises RecipeError if a method refuses its parameters.
        """
        place = _Place(tensor, distinct_leaves(tensor.formula))
        output = self._value(tensor.formula, place)
        twins = place.twins(output)
        shared = twins[output]
        assert isinstance(shared, Value)
        # What a method grouped may be left unused by the recipe around it.
        groups = {twins[node]: key for node, key in place.groups.items() if node in twins}
        return Traced(shared, place.sources, groups)

    def _value(self, formula: Formula, place: _Place) -> Value:
        if formula in place.values:
            return place.values[formula]
        if isinstance(formula, Leaf):
            result = source(place.sources.index(formula))
        elif isinstance(formula, Cast):
            result = rounded(self._value(formula.inner, place), formula.dtype)
        elif isinstance(formula, Sum):
            terms = [(c, self._value(f, place)) for c, f in formula.terms]
            result = add_all([v if c == 1.0 else v * c for c, v in terms])
        elif isinstance(formula, Merge):
            result = self._merge(formula, place)
        else:
            raise CompatibilityError(
                f"Tensor {place.tensor.name!r} is copied and has no formula to compute."
            )
        place.values[formula] = result
        return result

    def _merge(self, merge: Merge, place: _Place) -> Value:
        tensor = place.tensor
        base = None if merge.base is None else self._value(merge.base, place)
        experts = [self._value(expert, place) for expert in merge.experts]
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
            statistics=tuple(_statistic(stored, place.sources) for stored in merge.statistics),
            stored=merge.stored,
        )
        origin = None if merge.origin is None else self._value(merge.origin, place)
        chain = [self._modifier(m, tensor.name) for m in merge.modifiers]
        changed = modifiers.modified(chain, origin, experts, site)
        result = self._method(merge, tensor.name).combine(base, changed, site)
        # A merge that is merged further is one model, however differently its tensors come about.
        inner: dict[Node, str] = {
            value: label
            for formula, value, label in zip(merge.experts, experts, merge.labels, strict=False)
            if isinstance(formula, Merge)
        }
        place.group(merge.scope_id, result, inner)
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
    return Statistic(stored.kind, tuple(values), stored.shape, stored.dtype)


@functools.lru_cache(maxsize=64)
def statistic_names(
    statistics: tuple[Node, ...],
    checkpoints: tuple[str, ...],
    inner: tuple[tuple[Node, str], ...] = (),
) -> tuple[tuple[Node, tuple[str, int]], ...]:
    """A name for each statistic: what it computes, and how many before it compute the same (see `signature`)."""
    alike: Counter[str] = Counter()
    named = []
    for node in statistics:
        key = signature(node, checkpoints, dict(inner))
        named.append((node, (key, alike[key])))
        alike[key] += 1
    return tuple(named)


def signature(
    node: Node, checkpoints: Sequence[str], inner: Mapping[Node, str] = MappingProxyType({})
) -> str:
    """A digest of what a reduction computes, the same for every tensor that computes it from the same checkpoints.

    `checkpoints` are those of the sources. `inner` names nodes that are taken as they are, whatever they are computed
    from.
    """
    # A cut's attribute says what its k is a share of; every other reduction's text is the label that it was given.
    label = next((a for a in node.attributes if isinstance(a, str)), None)
    if label is not None and not isinstance(node, Cut):
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
            facts: tuple[object, ...] = (checkpoints[part.attributes[0]],)
        elif part.op == "uniform" or (part.op == "literal" and id(part) not in asked):
            facts = ()
        else:
            facts = tuple(getattr(a, "__qualname__", a) for a in part.attributes)
        text = repr((part.op, facts, [digests[id(child)] for child in part.inputs]))
        digests[id(part)] = hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
    return digests[id(node)]
