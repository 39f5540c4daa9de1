"""From the formula of one output tensor to its value graph."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from weightsmith.errors import CompatibilityError
from weightsmith.graph import (
    ModelStatistic,
    Node,
    Scalar,
    Site,
    Statistic,
    Threshold,
    Value,
    add_all,
    rounded,
    shared_graph,
    source,
    statistic_of,
    value,
    walk,
)
from weightsmith.methods import modifiers, registry
from weightsmith.recipes import (
    Cast,
    Formula,
    Leaf,
    MeasuredLeaves,
    Merge,
    Modification,
    OutputTensor,
    Sum,
    distinct_leaves,
)


@dataclass(frozen=True, slots=True)
class StatisticMember:
    """The part that one tensor has in a statistic of the model: its name in the result of the merge that measures it.

    The same tensor of a recipe inside a recipe may be in several outputs, and counts once.
    """

    statistic: ModelStatistic
    tensor: str


@dataclass(frozen=True, slots=True)
class Traced:
    """The graphs of tensors of one reading, with what they read: source i is `sources[i]`. Equal graphs are one object.

    `members` says in which statistics of the model their reductions take part. `measured` is the graph of all that has
    to be measured: the outputs, and statistics of an inner merge that the outer method, here, had no use for. `numbers`
    are the values of free numbers, by their nodes.
    """

    outputs: tuple[Value, ...]
    measured: Value
    sources: tuple[Leaf, ...]
    members: dict[Node, StatisticMember]
    numbers: Mapping[Node, float] = field(default_factory=dict)

    @property
    def output(self) -> Value:
        """The graph of the first tensor."""
        return self.outputs[0]

    def reads(self, tensor: OutputTensor) -> tuple[int, ...]:
        """The sources that a tensor's formula reads, in its order."""
        positions = {leaf: i for i, leaf in enumerate(self.sources)}
        return tuple(positions[leaf] for leaf in distinct_leaves(tensor.formula))


@dataclass(slots=True)
class _Place:
    """Tensors while they are traced: the value of each formula, and their part in statistics of the model."""

    tensor: OutputTensor
    sources: tuple[Leaf, ...]
    values: dict[Formula, Value] = field(default_factory=dict)
    members: dict[Node, StatisticMember] = field(default_factory=dict)
    # How many methods and modifiers there are: what one alone measures it also uses.
    steps: int = 0
    positions: dict[Leaf, int] = field(init=False)

    def __post_init__(self) -> None:
        self.positions = {leaf: i for i, leaf in enumerate(self.sources)}


class Tracer:
    """Traces formulas, building each method's object once per distinct set of parameters."""

    def __init__(self) -> None:
        self._methods: dict[Hashable, registry.Combine] = {}
        self._modifiers: dict[Modification, modifiers.Modify] = {}

    def formula_value(
        self, formula: Formula, tensor: OutputTensor, read: Callable[[Leaf], Value]
    ) -> Value:
        """The graph of any formula at the place of `tensor`; `read` gives the node of each leaf."""
        sources = distinct_leaves(formula)
        return self._value(formula, _Place(tensor, sources, {leaf: read(leaf) for leaf in sources}))

    def trace(self, *tensors: OutputTensor) -> Traced:
        """The graphs of output tensors that are computed in one reading.

        Raises RecipeError if a method refuses its parameters.
        """
        leaves = (leaf for tensor in tensors for leaf in distinct_leaves(tensor.formula))
        place = _Place(tensors[0], tuple(dict.fromkeys(leaves)))
        outputs = []
        for tensor in tensors:
            place.tensor = tensor
            outputs.append(self._value(tensor.formula, place))
        all_used = place.steps == 1
        twins = shared_graph(add_all(outputs) if all_used else _with_unused(outputs, place.members))
        members = {twins[node]: member for node, member in place.members.items()}
        measured = twins[next(reversed(twins))]
        shared = tuple(twin for o in outputs if isinstance(twin := twins[o], Value))
        assert isinstance(measured, Value)
        return Traced(shared, measured, place.sources, members)

    def _value(self, formula: Formula, place: _Place) -> Value:
        if formula in place.values:
            return place.values[formula]
        if isinstance(formula, Leaf):
            result = source(place.positions[formula])
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
        name = place.tensor.name
        base = None if merge.base is None else self._value(merge.base, place)
        experts = [self._value(expert, place) for expert in merge.experts]
        site = Site(
            merge.place,
            merge.shape,
            seed=merge.seed,
            labels=merge.labels,
            statistics=tuple(_statistic(stored, place.positions) for stored in merge.statistics),
            stored=merge.stored,
            merge=merge.scope_id,
        )
        origin = None if merge.origin is None else self._value(merge.origin, place)
        chain = [self._modifier(m, name) for m in merge.modifiers]
        place.steps += 1 + len(chain)
        given = [
            tuple(_statistic(stored, place.positions) for stored in own)
            for own in merge.modifier_statistics
        ]
        changed = modifiers.modified(chain, origin, experts, site, given)
        result = self._method(merge, name).combine(base, changed, site)
        # What modifiers measure counts for tensors too in which the method has no use for it.
        for node in walk([result, *changed], place.members):
            statistic = statistic_of(node)
            if statistic is not None and node not in place.members:
                place.members[node] = StatisticMember(statistic, merge.place.name)
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


def _statistic(stored: MeasuredLeaves, positions: Mapping[Leaf, int]) -> Statistic:
    values = [source(positions[leaf]) for leaf in stored.leaves]
    if stored.constant is not None:
        values = [value(stored.constant)]
    if stored.divisor != 1.0:
        values = [v / stored.divisor for v in values]
    return Statistic(stored.kind, tuple(values), stored.shape, stored.dtype)


def _with_unused(outputs: Sequence[Value], members: Mapping[Node, StatisticMember]) -> Value:
    """The outputs, and behind them the statistics that they do not depend on."""
    used = set(walk(outputs)) if members else set()
    unused = [node for node in members if node not in used]
    numbers = [node.magnitude if isinstance(node, Threshold) else node for node in unused]
    return add_all([*outputs, *(value(n) for n in numbers if isinstance(n, Scalar))])
