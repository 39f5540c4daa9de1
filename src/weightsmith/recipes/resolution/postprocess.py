"""What follows the merge of single tensors: `then:` steps, tied outputs, and the tensors of `assert:` clauses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from weightsmith.adapters import Reference
from weightsmith.checkpoints import declared_tied
from weightsmith.errors import RecipeError
from weightsmith.methods import registry
from weightsmith.recipes.language.parameter_settings import lookups
from weightsmith.recipes.language.schema import Clause, MethodStep, RecipeDocument
from weightsmith.recipes.language.selectors import Match
from weightsmith.recipes.resolution.combine import Combiner
from weightsmith.recipes.resolution.formula import (
    Assertion,
    Formula,
    MeasuredLeaves,
    Merge,
    OutputTensor,
)
from weightsmith.recipes.resolution.measured_statistics import MeasuredStatistics, chosen
from weightsmith.recipes.resolution.output_sections import distinct_labels, values
from weightsmith.recipes.resolution.result import RecipeResult, RecipeScope
from weightsmith.recipes.resolution.views import View
from weightsmith.tensors import Kind, Place, depth_of


@dataclass(frozen=True, slots=True)
class StepStatistics:
    """What steps go by: the files that each names, all of the base, and who notes what is wrong with them."""

    base: View | None
    files: tuple[tuple[MeasuredStatistics, ...], ...]
    combiner: Combiner

    def file(self, number: int, spec: registry.MethodSpec, where: str) -> MeasuredStatistics | None:
        """The file that a step goes by, if it needs one; raises RecipeError where it names none that fits."""
        if not spec.statistics or self.base is None:
            return None
        given = [replace(file, of_base=True) for file in self.files[number]]
        return chosen(spec, given, self.base.label, where)

    def of(
        self, file: MeasuredStatistics | None, spec: registry.MethodSpec, item: OutputTensor | None
    ) -> tuple[MeasuredLeaves, ...]:
        """What a step's file has of a tensor of the base."""
        if file is None or item is None or self.base is None:
            return ()
        return self.combiner.statistics(spec, [file], [(self.base, item)], item.name) or ()


def step_statistics(
    document: RecipeDocument,
    base: View | None,
    combiner: Combiner,
    measured: Callable[[Reference, View], MeasuredStatistics],
) -> StepStatistics:
    """The statistics that the steps of a recipe name; raises RecipeError where there is no base that they are of."""
    files = []
    for i, step in enumerate(document.then or ()):
        given = step.statistics or ()
        if given and base is None:
            raise RecipeError(
                f"then[{i}]: the statistics of a step are of the base; give `base_model:`."
            )
        files.append(tuple(measured(file, base) for file in given if base is not None))
    return StepStatistics(base, tuple(files), combiner)


def post_steps(
    document: RecipeDocument,
    items: Sequence[OutputTensor],
    bases: Mapping[str, OutputTensor],
    scope: RecipeScope,
    statistics: StepStatistics,
) -> list[OutputTensor]:
    """The outputs after every step of `then:`: a method with what was merged as its first, mostly only, expert."""
    result = list(items)
    merges = {item.name: item.formula for item in items if isinstance(item.formula, Merge)}
    for i, step in enumerate(document.then or ()):
        place = f"then[{i}]"
        within = replace(scope, name=f"{scope.name}/{place}")
        file = statistics.file(i, registry.get(step.method), place)
        stored = partial(statistics.of, file)
        result = _stepped(step, result, merges, bases, stored, place, within)
    return result


def _stepped(
    step: MethodStep,
    items: Sequence[OutputTensor],
    merges: Mapping[str, Merge],
    bases: Mapping[str, OutputTensor],
    stored: Callable[[registry.MethodSpec, OutputTensor | None], tuple[MeasuredLeaves, ...]],
    where: str,
    scope: RecipeScope,
) -> list[OutputTensor]:
    spec = registry.get(step.method)
    spec.check_expert_count(1, where)
    parameters = step.parameters or {}
    follows = spec.step if parameters.get(spec.step_unless) is None else {}
    given = next((key for key in follows if key in parameters), None)
    if given is not None:
        raise RecipeError(
            f"{where}: method {spec.name} has {given} {follows[given]!r} as a step; leave {given!r} out."
        )
    if follows and spec.step_unless:
        _require_merged(items, merges, f"{where}: method {spec.name} needs {spec.step_unless!r}")
    shared = lookups(
        spec.parameters, (step.parameters,), per_expert=False, where=where, preset=scope.semantics
    )
    own = lookups(
        spec.parameters, (step.parameters,), per_expert=True, where=where, preset=scope.semantics
    )
    result = []
    for item in items:
        merge = merges.get(item.name)
        if not item.dtype.is_float or (follows and merge is None):
            result.append(item)
            continue
        behind = merge if follows else None
        experts = behind.experts if behind is not None else ()
        base = _base_of(item, bases.get(item.name), spec, where)
        formula = Merge(
            method=spec.name,
            preset=scope.semantics,
            shared=(*values(shared, item.name, item.place), *follows.items()),
            base=None if base is None else base.formula,
            experts=(item.formula, *experts),
            per_expert=(values(own, item.name, item.place),) * (1 + len(experts)),
            labels=distinct_labels(["merged", *(behind.labels if behind is not None else ())]),
            scope_id=scope.name,
            place=item.place,
            shape=item.shape,
            seed=scope.seed,
            statistics=stored(spec, bases.get(item.name)),
            stored=behind.stored if behind is not None else item.dtype,
        )
        result.append(replace(item, formula=formula))
    return result


def _base_of(
    item: OutputTensor, base: OutputTensor | None, spec: registry.MethodSpec, where: str
) -> OutputTensor | None:
    """The base's tensor as a step takes it, None for a step that has no use for it."""
    if spec.base is registry.Base.IGNORED:
        return None
    if base is None:
        if spec.base is registry.Base.REQUIRED:
            raise RecipeError(
                f"{where}: method {spec.name} needs the base of {item.name!r}; give `base_model:`."
            )
        return None
    if base.shape != item.shape:
        raise RecipeError(
            f"{where}: {item.name!r} has the shape {list(base.shape)} in the base, and {list(item.shape)} in the "
            f"result; method {spec.name} needs two of one shape."
        )
    return base


def _require_merged(
    items: Sequence[OutputTensor], merges: Mapping[str, Merge], complaint: str
) -> None:
    """Raise RecipeError unless every tensor was merged from equally many experts, two at least."""
    counts: dict[int, str] = {}
    for item in items:
        merge = merges.get(item.name)
        if item.dtype.is_float:
            counts.setdefault(0 if merge is None else len(merge.experts), item.name)
    if len(counts) > 1 or min(counts, default=2) < 2:
        fewest = min(counts)
        raise RecipeError(
            f"{complaint}, which it cannot tell from what was merged: tensor {counts[fewest]!r} is made of "
            f"{fewest or 1} expert(s)"
            + (f", {counts[max(counts)]!r} of {max(counts)}." if len(counts) > 1 else ".")
        )


def tied_outputs(result: RecipeResult) -> list[OutputTensor]:
    """The outputs with every tie that all inputs share.

    Of an embedding and a head that the configuration declares tied only the embedding is written; other tied
    tensors are written under each of their names with the values of one.
    """
    return _with_ties(result)


def as_written(result: RecipeResult) -> list[OutputTensor]:
    """The outputs of a recipe inside a recipe as they would be read from a folder that it had been written to.

    Tied tensors are one, under each of their names. Depths are those in the stack that was made, not in the slices
    that it was made from.
    """
    items = _with_ties(result, drop=False)
    layers: dict[str | None, set[int]] = {}
    for item in items:
        if item.place.layer is not None:
            layers.setdefault(item.place.stack, set()).add(item.place.layer)
    ordered = {block: sorted(found) for block, found in layers.items()}
    if result.scope.semantics == "mergekit":
        return items
    return [replace(item, place=_in_stack(item.place, ordered)) for item in items]


def _in_stack(place: Place, layers: Mapping[str | None, Sequence[int]]) -> Place:
    if place.layer is None:
        return place
    own = layers[place.stack]
    return replace(place, depth=depth_of(own.index(place.layer), len(own)))


def _with_ties(result: RecipeResult, *, drop: bool = True) -> list[OutputTensor]:
    groups = [
        set(group)
        for group in result.config_source.ties
        if all(_shares(view.ties, group) for view in result.inputs)
    ]
    by_name = {item.name: item for item in result.items}
    is_declared = declared_tied(result.config_source.checkpoint.config) is True
    followers: dict[str, str] = {}
    dropped: set[str] = set()
    for group in groups:
        names = [name for name in by_name if name in group]
        if len(names) < 2:
            continue
        leader = next((n for n in names if by_name[n].place.kind is Kind.EMBEDDING), names[0])
        for name in names:
            if name == leader:
                continue
            if (
                drop
                and is_declared
                and by_name[name].place.kind is Kind.HEAD
                and by_name[leader].place.kind is Kind.EMBEDDING
            ):
                dropped.add(name)
            followers[name] = leader
    return [
        replace(item, formula=by_name[followers[item.name]].formula, tied_to=followers[item.name])
        if item.name in followers
        else item
        for item in result.items
        if item.name not in dropped
    ]


def _shares(ties: Sequence[frozenset[str]], group: frozenset[str]) -> bool:
    return any(group <= other for other in ties)


def assertions(
    document: RecipeDocument, result: RecipeResult, outputs: Sequence[OutputTensor]
) -> tuple[Assertion, ...]:
    """The clauses of `assert:` with the tensors that they are about, and what these are compared with.

    Raises RecipeError for a clause about no tensor, and for one that needs a base or a parent that is not there.
    """
    return tuple(
        _assertion(clause, f"assert[{i}]", result, outputs)
        for i, clause in enumerate(document.assertions or ())
    )


def _assertion(
    clause: Clause, where: str, result: RecipeResult, outputs: Sequence[OutputTensor]
) -> Assertion:
    if clause.finite:
        return Assertion(
            "finite", "finite: true", tuple(item.name for item in outputs if item.dtype.is_float)
        )
    if clause.norm_ratio is not None:
        bounds = clause.norm_ratio
        chosen = [item for item in _selected(bounds.match, outputs, where) if item.dtype.is_float]
        found = {item.name: result.bases.get(item.name) for item in chosen}
        text = f"norm_ratio in [{bounds.low:g}, {bounds.high:g}]"
        return Assertion(
            "norm_ratio",
            text,
            tuple(found),
            _references(found, where, "the base"),
            bounds.low,
            bounds.high,
        )
    assert clause.equal is not None
    view = result.model_view(clause.equal.to, where)
    chosen = _selected(clause.equal.match, outputs, where)
    found = {item.name: view.items.get(item.name) for item in chosen}
    return Assertion(
        "equal",
        f"equal to {view.label!r}",
        tuple(found),
        _references(found, where, repr(view.label)),
    )


def _selected(
    match: Match | None, outputs: Sequence[OutputTensor], where: str
) -> list[OutputTensor]:
    chosen = [o for o in outputs if match is None or match.matches(o.place)]
    if not chosen:
        raise RecipeError(f"{where}: its match selects no tensor of the result; correct it.")
    return chosen


def _references(
    found: Mapping[str, OutputTensor | None], where: str, whose: str
) -> tuple[Formula, ...]:
    lacking = [name for name, item in found.items() if item is None]
    if lacking:
        raise RecipeError(
            f"{where}: {whose} has no tensor {lacking[0]!r} to compare with; narrow the clause's match."
        )
    return tuple(item.formula for item in found.values() if item is not None)
