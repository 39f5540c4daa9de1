"""Adapters combined into one by any merge method: linear ones factored, others on changes in a space of their choice.

    cat, svd, lego       `adapters.combining.combine`
    metrics_weighted     a weighted average, with weights from a number for each adapter
    magnitude_prune      the largest elements of each change, then their weighted sum
    knots, core_space    the rule `merger` (default ties) in that space
    any other            the method of the registry on changes, with a base of zeros

A method that comes down to fixed coefficients stays factored, whatever it is called. The numbers are those of the same
method on `base+adapter` checkpoints less the base, without their rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from weightsmith.adapters.bounds import Bound
from weightsmith.adapters.combining import (
    CombinationReport,
    Rule,
    combine,
    combine_in,
)
from weightsmith.adapters.lego import Lego
from weightsmith.adapters.low_rank import LowRankAdapter
from weightsmith.adapters.spaces import CoreSpace, Dense, Knots, Space
from weightsmith.checkpoints.checkpoint import Checkpoint
from weightsmith.deltas.changes import Matrix
from weightsmith.engine.api import merge_state_dicts
from weightsmith.engine.linearity import Term, coefficients
from weightsmith.errors import UsageError
from weightsmith.methods import registry
from weightsmith.methods.metrics_weighted import MetricsWeighted
from weightsmith.tensors.graph import Scope, Value, is_reduction, source, walk
from weightsmith.tensors.messages import shown
from weightsmith.tensors.site import Site
from weightsmith.wording import counted, literal

SPACES: dict[str, Space] = {"dense": Dense(), "knots": Knots(), "core": CoreSpace()}
# Methods that are a space, with the parameters that are the space's own.
_SPACE_METHODS: dict[str, tuple[tuple[str, ...], Space]] = {
    "knots": (("side", "basis"), Knots()),
    "core_space": (("gauge",), CoreSpace()),
}
_PRUNED = "magnitude_prune"
_METRIC_PARAMETERS = ("metric", "by", "normalization", "penalty")
Options = TypeVar("Options")
# Of a method that sums, an adapter takes part whole unless a weight says otherwise.
_SUMMING = ("dare_linear", _PRUNED)
_OWN = ("cat", "svd")


def combine_loaded(
    adapters: Sequence[LowRankAdapter],
    method: str = "linear",
    weights: Sequence[float] | None = None,
    *,
    space: str | Space = "dense",
    parameters: Mapping[str, Any] | None = None,
    preset: str = "paper",
    seed: int = 0,
    bound: Bound | None = None,
    lego: Lego | None = None,
    base: Checkpoint | None = None,
    labels: Sequence[str] = (),
) -> tuple[LowRankAdapter, CombinationReport]:
    """Combine adapters of one base; `parameters` and `preset` are those of the method, `seed` that of random masks.

    In the space `dense` the rank of the result is the largest of the adapters' unless `bound` says otherwise; in
    `knots` and `core` the result is exact without a bound. A method that counts over the whole model sees every change
    at once: in the dense space all of them are in memory then. Raises RecipeError for unknown methods and parameters,
    UsageError for a space or weights without a meaning, and what `combine` raises.
    """
    given = dict(parameters or {})
    rest: dict[str, Any] = {"bound": bound, "base": base, "labels": labels}
    if method == "lego":
        plain = Lego(rank=None if bound is None else bound.rank)
        lego = _with_options(lego or plain, given, method)
        return combine(adapters, method, weights, lego=lego, **rest)
    if method in _OWN:
        _with_options(None, given, method)
        return combine(adapters, method, weights, **rest)
    if method == "metrics_weighted":
        if weights is not None:
            raise UsageError("metrics_weighted finds its own weights; give no others.")
        unknown = next((key for key in given if key not in _METRIC_PARAMETERS), None)
        if unknown is not None:
            raise UsageError(f"metrics_weighted has no parameter {unknown!r}.")
        found = metric_weights(given.pop("metric", ()), **given)
        return _summed(adapters, method, found, rest)
    if method in _SPACE_METHODS:
        own, usual = _SPACE_METHODS[method]
        space = _with_options(usual, {k: given.pop(k) for k in own if k in given}, method)
        method = str(given.pop("merger", "ties"))
    chosen = _Method.of(method, weights, len(adapters), given, preset)
    place = _space(space)
    if chosen.coefficients is not None:
        return _summed(adapters, method, chosen.coefficients, rest)
    if isinstance(place, Dense) and bound is None:
        rest["bound"] = Bound(rank=max((_largest_rank(a) for a in adapters), default=1))
    shares = weights if weights is not None or method not in _SUMMING else [1.0] * len(adapters)
    rule = chosen.rule(seed, labels)
    return combine_in(
        adapters, place, rule, shares, method=method, one_by_one=chosen.is_local, **rest
    )


def _summed(
    adapters: Sequence[LowRankAdapter],
    method: str,
    coefficients: Sequence[float],
    rest: Mapping[str, Any],
) -> tuple[LowRankAdapter, CombinationReport]:
    combined, report = combine(adapters, "task_arithmetic", coefficients, **rest)
    return combined, replace(report, method=method)


def metric_weights(
    metric: Sequence[float],
    *,
    by: str = "loss",
    normalization: str = "power",
    penalty: float = 1.0,
) -> list[float]:
    """Weights that sum to 1, from a loss, score or step for each adapter: those of the method metrics_weighted."""
    if not metric:
        raise UsageError("metrics_weighted needs `metric`, one number for each adapter.")
    built = registry.get("metrics_weighted").build(
        {"by": by, "normalization": normalization, "penalty": penalty},
        [{"metric": number} for number in metric],
        where="adapters",
    )
    assert isinstance(built, MetricsWeighted)
    return built.weights()


@dataclass(frozen=True, slots=True)
class _Method:
    """A method of the registry with its parameters.

    `is_local`: it depends on nothing but the tensor. `coefficients` are those of the adapters where it is a fixed sum.
    """

    spec: registry.MethodSpec
    parameters: Mapping[str, Any]
    each: Sequence[Mapping[str, Any]]
    preset: str
    modify: Sequence[Mapping[str, Mapping[str, Any]]]
    is_local: bool
    coefficients: tuple[float, ...] | None

    @classmethod
    def of(
        cls,
        method: str,
        weights: Sequence[float] | None,
        count: int,
        parameters: Mapping[str, Any],
        preset: str,
    ) -> _Method:
        """Look the method up and see what kind it is."""
        rest, steps = dict(parameters), dict[str, Any]()
        if method == _PRUNED:
            method = "task_arithmetic"
            steps = {key: rest.pop(key) for key in ("density", "scope", "rescale") if key in rest}
            steps = {"density": 1.0, **steps}
        spec = registry.get(method)
        if spec.statistics:
            raise UsageError(
                f"Method {spec.name} needs statistics of models, which adapters have none of; give their models as "
                "base+adapter in a recipe."
            )
        each, rest = parameters_by_adapter(spec, rest, weights, count)
        graphs = _graphs(spec.build(rest, each, preset=preset, where="adapters"), count)
        modify = [{"sparsify": steps}] if steps else []
        is_local = _is_local(graphs) and steps.get("scope") != "model"
        sums = _coefficients(graphs[0], count) if is_local and not steps else None
        return cls(spec, rest, each, preset, modify, is_local, sums)

    def rule(self, seed: int, labels: Sequence[str]) -> Rule:
        """The method as a rule for changes: its experts are they, its base zeros."""
        has_base = self.spec.base is not registry.Base.IGNORED or bool(self.modify)

        def merge(models: Sequence[Mapping[str, Matrix]]) -> Mapping[str, Matrix]:
            import torch

            states = [{k: torch.from_numpy(m) for k, m in model.items()} for model in models]
            zero = {key: torch.zeros_like(tensor) for key, tensor in states[0].items()}
            merged = merge_state_dicts(
                self.spec.name,
                states,
                base=zero if has_base else None,
                parameters=self.parameters,
                per_expert=self.each,
                preset=self.preset,
                seed=seed,
                labels=labels,
                modify=self.modify,
            )
            return {key: tensor.numpy() for key, tensor in merged.items()}

        return merge


def has_recipe(method: str) -> bool:
    """Whether a recipe of adapters says what the method does with them in the dense space."""
    return method in registry.names() and method not in _SPACE_METHODS


def parameters_by_adapter(
    spec: registry.MethodSpec,
    parameters: Mapping[str, Any],
    weights: Sequence[float] | None,
    count: int,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Parameters of each adapter and of all: a list for what every expert has of its own is one value for each.

    Raises UsageError for weights that the method does not take, and for lists of another length.
    """
    if weights is not None and "weight" not in spec.parameters:
        raise UsageError(f"Method {spec.name} takes no weights; leave them out.")
    lists = {key: value for key, value in parameters.items() if _is_list(spec, key, value)}
    if weights is not None:
        lists["weight"] = [float(weight) for weight in weights]
    for key, values in lists.items():
        if len(values) != count:
            raise UsageError(
                f"{counted(len(values), 'value')} of {key!r} for {counted(count, 'adapter')}: give one for each."
            )
    each = [{key: values[i] for key, values in lists.items()} for i in range(count)]
    return each, {key: value for key, value in parameters.items() if key not in lists}


def _is_list(spec: registry.MethodSpec, key: str, value: Any) -> bool:
    own = key in spec.parameters and spec.parameters[key].per_expert
    return own and isinstance(value, list | tuple)


def _graphs(built: registry.Combine, count: int) -> list[Value]:
    """What the method computes for one matrix in the first, the last and no layer of a model."""
    graphs = []
    for layer, layers in ((0, 4), (3, 4), (None, 0)):
        nodes = [source(i) for i in range(count + 1)]
        site = Site("tensor", (8, 8), role="linear", layer=layer, layers=layers)
        graphs.append(built.combine(nodes[0], nodes[1:], site))
    return graphs


def _is_local(graphs: Sequence[Value]) -> bool:
    """Whether a method depends on nothing but the tensor: no sum over the model, no place in its depth."""
    if any(_counts_over_model(graph) for graph in graphs):
        return False
    return len({_structure(graph) for graph in graphs}) == 1


def _coefficients(graph: Value, count: int) -> tuple[float, ...] | None:
    """Those of the adapters where the graph is a fixed sum; the base is zero, so its own does not matter."""
    found = coefficients(graph)
    if found is None or any(term.rounded_to is not None for term in found):
        return None
    return tuple(found.get(Term(i + 1), 0.0) for i in range(count))


def _structure(graph: Value) -> str:
    """The whole graph with its numbers; functions that are made anew for each tensor differ."""
    nodes = list(walk([graph]))
    places = {node: i for i, node in enumerate(nodes)}
    return repr([(n.op, n.attributes, [places[child] for child in n.inputs]) for n in nodes])


def _counts_over_model(graph: Value) -> bool:
    return any(
        is_reduction(node) and getattr(node, "scope", None) is Scope.MODEL for node in walk([graph])
    )


def _space(space: str | Space) -> Space:
    if not isinstance(space, str):
        return space
    if space not in SPACES:
        raise UsageError(f"{shown(space)} is no space: use one of {', '.join(SPACES)}.")
    return SPACES[space]


def _largest_rank(adapter: LowRankAdapter) -> int:
    return max((f.change.rank for f in adapter.factors.values()), default=1)


def _with_options(options: Options, given: Mapping[str, Any], method: str) -> Options:
    """Options with the given ones in place; raises UsageError for unknown names and values."""
    kinds = {} if options is None else get_type_hints(type(options))
    for key, value in given.items():
        if key not in kinds:
            raise UsageError(f"{method} has no parameter {key!r}.")
        choices = get_args(kinds[key])
        is_literal = get_origin(kinds[key]) is Literal
        fits = value in choices if is_literal else isinstance(value, kinds[key])
        if not fits:
            listed = " or ".join(map(str, choices)) if is_literal else _words(kinds[key])
            raise UsageError(f"The parameter {key} of {method} is {listed}, not {literal(value)}.")
    changed: Options = replace(options, **given) if given else options  # type: ignore[type-var]
    return changed


def _words(kind: Any) -> str:
    """What values of a type are, in words; of a union, those of its first."""
    first = next(iter(get_args(kind)), kind)
    return {bool: "true or false", int: "a whole number", float: "a number"}.get(first, "a text")
