"""The plan of a recipe whose models are adapters alone, and whose result is one too.

Each adapter is taken as a checkpoint of its changes, or of their coordinates in a space, and the base as zeros, so
every method sees task vectors. Where the result is a sum of the changes with fixed coefficients it stays factored; else
each tensor's change is computed, by itself, and decomposed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from weightsmith.adapters import Reference, open_adapter, stored_tensors
from weightsmith.checkpoints import BareAdapter, Checkpoint
from weightsmith.engine.planning.adapter_result import AdapterResult
from weightsmith.engine.planning.linearity import coefficients
from weightsmith.engine.planning.trace import Tracer
from weightsmith.errors import CompatibilityError, RecipeError
from weightsmith.findings import Finding, Severity
from weightsmith.lora import (
    Array,
    ChangedTarget,
    Coordinates,
    CoreSpace,
    Dialect,
    KnotsSpace,
    Lego,
    Loaded,
    LowRankAdapter,
    RankBound,
    absences,
    aligned,
    changes_of,
    low_rank_adapter,
    named_by,
    targets_of,
    unchanged,
)
from weightsmith.methods import modifiers, registry
from weightsmith.recipes import (
    AdapterForm,
    Cast,
    Formula,
    Merge,
    Opener,
    OutputTensor,
    Recipe,
    RecipeDocument,
    Resolved,
    Sum,
    merged_references,
    opener_of,
    other_references,
    resolve,
)
from weightsmith.tensors import DType, promote, shown
from weightsmith.wording import counted

_SPACES = {"knots": KnotsSpace, "core": CoreSpace}
# What the recipe calls the base that it does not name.
NO_BASE = "no change"
_WRITTEN: tuple[Dialect, ...] = ("peft", "kohya", "diffusers")
_REFUSED = (
    "slices",
    "modules",
    "tokenizer",
    "tokenizer_source",
    "chat_template",
    "bundle",
    "untie",
    "accept",
)


def resolve_adapters(
    recipe: Recipe, opener: Opener, found: BareAdapter
) -> tuple[Resolved, AdapterResult]:
    """A recipe over adapters as one over their changes.

    `found` is what the opening of its first adapter raised, and is raised again where other models are no adapters.
    Raises RecipeError for what means nothing without a base, and what reading adapters raises.
    """
    document = recipe.document
    _refuse(document)
    opened = _opened(recipe, opener_of(recipe, opener), found)
    base = next((c for c in opened.values() if isinstance(c, Checkpoint)), None)
    loaded = {
        reference: _loaded(reference, place, base)
        for reference, place in opened.items()
        if isinstance(place, BareAdapter)
    }
    elements = targets_of(list(loaded.values()), base)
    form = document.adapter or AdapterForm()
    bound = _bound(form, elements)
    coordinates = _coordinates(form, list(loaded.values()), elements)
    targets = elements
    if coordinates is not None:
        targets = {target.name: target for target in coordinates.targets(elements)}
    if not targets:
        raise CompatibilityError("The adapters change nothing: there is nothing to combine.")
    views = _views(opened, loaded, targets, coordinates)
    resolved = resolve(replace(recipe, document=_over_changes(document), base_dir=None), views)
    if coordinates is not None:
        resolved = _apart(resolved, targets)
    used = {label: c.source for label, c in resolved.checkpoints.items() if c.source in loaded}
    by_label = {label: loaded[source] for label, source in used.items()}
    sums = dict(_sums(resolved, targets, set(by_label)))
    result = AdapterResult(
        loaded=by_label,
        targets=targets,
        sums={name: found for name, found in sums.items() if targets[name].units},
        kept=dict(_kept(targets, sums, by_label)),
        bound=bound,
        dialect=_dialect(form, list(by_label.values())),
        dtype=_dtype(document, list(by_label.values())),
        base=base,
        largest=form.rank == "largest",
        lego=_lego(form, bound),
        coordinates=coordinates,
    )
    _require_sums(result)
    findings = (*resolved.findings, *_about_adapters(by_label), *_findings(result))
    return replace(resolved, recipe=recipe, findings=findings, shard_bytes=2**62), result


def _bound(form: AdapterForm, targets: Mapping[str, ChangedTarget]) -> RankBound:
    rank = form.rank if isinstance(form.rank, int) else None
    sizes = [min(unit.change.shape) for target in targets.values() for unit in target.units]
    if rank is not None and sizes and rank > max(sizes):
        raise RecipeError(
            f"adapter.rank: No tensor of these adapters can have rank {rank}: the largest possible is {max(sizes)}."
        )
    return RankBound(rank, form.energy, form.error)


def _coordinates(
    form: AdapterForm, loaded: Sequence[Loaded], targets: Mapping[str, ChangedTarget]
) -> Coordinates | None:
    if form.space is None or form.space.name == "dense":
        return None
    return Coordinates.of(_SPACES[form.space.name](**form.space.options), loaded, targets)


def _lego(form: AdapterForm, bound: RankBound) -> Lego | None:
    if form.reduce is None or form.reduce.name != "lego":
        return None
    return Lego(rank=bound.rank, **form.reduce.options)


def _require_sums(result: AdapterResult) -> None:
    """Raise RecipeError where units are to be clustered of what is no sum of changes."""
    if result.lego is not None and result.computed:
        raise RecipeError(
            "adapter.reduce: lego clusters the units of a weighted sum of adapters, but the method computes "
            f"{shown(result.computed[0])} of elements; use task_arithmetic or linear, or leave `reduce` out."
        )


def _views(
    opened: Mapping[str, Checkpoint | BareAdapter],
    loaded: Mapping[str, Loaded],
    targets: Mapping[str, ChangedTarget],
    coordinates: Coordinates | None,
) -> dict[str, Checkpoint]:
    """Every model of the recipe as the checkpoint of its changes, and one that changes nothing."""
    stored = [tensor.dtype for one in loaded.values() for tensor in one.stored]
    dtype = DType.FLOAT64 if DType.FLOAT64 in stored else DType.FLOAT32
    views = {}
    for reference, place in opened.items():
        if isinstance(place, Checkpoint):
            views[reference] = unchanged(targets, place.path, reference, dtype)
            continue
        one = loaded[reference]
        seen = None if coordinates is None else coordinates.of_one(one)
        views[reference] = changes_of(one, targets, dtype, seen)
    path = next(iter(loaded.values())).path
    return {**views, NO_BASE: unchanged(targets, path, NO_BASE, dtype)}


def _apart(resolved: Resolved, targets: Mapping[str, ChangedTarget]) -> Resolved:
    """Statistics of the whole model apart for coordinates and for what is in no space: their sizes have nothing in
    common.
    """
    elements = {name for name, target in targets.items() if not target.in_space}

    def moved(output: OutputTensor) -> OutputTensor:
        return replace(output, formula=_moved(output.formula, elements))

    outputs = tuple(map(moved, resolved.outputs))
    return replace(resolved, outputs=outputs, measured=tuple(map(moved, resolved.measured)))


def _moved(formula: Formula, names: Collection[str]) -> Formula:
    """The same formula, in which what is merged of these tensors is a merge of its own."""
    if isinstance(formula, Cast):
        return replace(formula, inner=_moved(formula.inner, names))
    if isinstance(formula, Sum):
        return replace(formula, terms=tuple((c, _moved(f, names)) for c, f in formula.terms))
    if not isinstance(formula, Merge):
        return formula
    scope = f"{formula.scope_id}/elements" if formula.place.name in names else formula.scope_id
    return replace(
        formula,
        base=None if formula.base is None else _moved(formula.base, names),
        origin=None if formula.origin is None else _moved(formula.origin, names),
        experts=tuple(_moved(expert, names) for expert in formula.experts),
        scope_id=scope,
    )


def _refuse(document: RecipeDocument) -> None:
    for key in _REFUSED:
        if getattr(document, key) is not None:
            raise RecipeError(
                f"{key}: this means nothing for a recipe of adapters alone; leave it out, or write BASE+ADAPTER to "
                "merge models."
            )
    for i, clause in enumerate(document.assertions or ()):
        if not clause.finite:
            raise RecipeError(
                f"assert[{i}]: a recipe of adapters alone can assert `finite` only; leave the clause out."
            )


def _opened(
    recipe: Recipe, opener: Opener, found: BareAdapter
) -> dict[str, Checkpoint | BareAdapter]:
    """Every model as the adapter that it is, or as the base's checkpoint."""
    document = recipe.document
    bases = _bases(document)
    opened: dict[str, Checkpoint | BareAdapter] = {}
    for reference in [*merged_references(document), *other_references(document)]:
        try:
            opened[str(reference)] = opener(reference)
        except BareAdapter as adapter:
            opened[str(reference)] = adapter
            continue
        if reference not in bases:
            raise found
    if sum(isinstance(one, Checkpoint) for one in opened.values()) > 1:
        raise RecipeError(
            "The recipe merges adapters of several bases; give the base that all of them were trained on."
        )
    return opened


def _bases(document: RecipeDocument) -> set[Reference]:
    named = [document.base_model, (document.checkpoints or {}).get("base")]
    return {model for model in named if isinstance(model, Reference)}


def _loaded(reference: str, place: BareAdapter, base: Checkpoint | None) -> Loaded:
    opened = replace(open_adapter(place.path), source=reference)
    adapter = named_by(base, opened)
    return Loaded(
        reference,
        place.path,
        opened.dialect,
        low_rank_adapter(adapter, base),
        tuple(dict.fromkeys(stored_tensors(opened))),
        {update.key: update.stored for update in adapter.updates.values()},
        opened.flattened and base is None,
        opened.inputs,
    )


def _over_changes(document: RecipeDocument) -> RecipeDocument:
    """The recipe of the changes themselves, with a base of zeros where a method wants one."""
    changes: dict[str, object] = {"adapter": None, "dtype": None, "out_dtype": None}
    if document.base_model is None and document.expression is None and _wants_base(document):
        changes["base_model"] = Reference(NO_BASE)
    if document.models is not None:
        changes["models"] = tuple(
            entry
            if isinstance(entry.model, Reference)
            else entry.model_copy(update={"model": _over_changes(entry.model)})
            for entry in document.models
        )
    return document.model_copy(update=changes)


def _wants_base(document: RecipeDocument) -> bool:
    methods = [document.merge_method, *(rule.merge_method for rule in document.rules or ())]
    methods += [step.method for step in document.then or ()]
    steps = [*(document.modify or ()), *(s for r in document.rules or () for s in r.modify or ())]
    wanted = [registry.get(name).base for name in methods if name is not None]
    wanted += [modifiers.get(step.method).base for step in steps]
    return registry.Base.REQUIRED in wanted


def _sums(
    resolved: Resolved, targets: Mapping[str, ChangedTarget], labels: set[str]
) -> Iterator[tuple[str, dict[str, float]]]:
    """The tensors whose result is a sum of the adapters' changes, with its coefficients by label.

    Of those without factors, only what an adapter replaces is looked at.
    """
    tracer = Tracer()
    for output in resolved.outputs:
        target = targets[output.name]
        is_wanted = target.units or target.original is not None
        found = _coefficients(tracer, output) if is_wanted else None
        if found is not None:
            yield output.name, {label: c for label, c in found.items() if label in labels}


def _kept(
    targets: Mapping[str, ChangedTarget],
    sums: Mapping[str, Mapping[str, float]],
    loaded: Mapping[str, Loaded],
) -> Iterator[tuple[str, Array | None]]:
    """Replaced tensors that stay as they are, whatever the base has there; None where no adapter takes part.

    W + sum_i w_i (R_i - W) is R where all adapters that take part replace it by R and their weights sum to 1. Raises
    CompatibilityError where the result depends on a base that is not given or has no such tensor.
    """
    for name, target in targets.items():
        if target.original is None:
            continue
        taking = [(loaded[k].adapter, w) for k, w in sums.get(name, {}).items() if w]
        touching = [(adapter, w) for adapter, w in taking if _touches(adapter, name)]
        saved_modules = [
            adapter.replaced[name] for adapter, _ in touching if name in adapter.replaced
        ]
        is_whole = math.isclose(math.fsum(w for _, w in touching), 1.0, abs_tol=1e-12)
        are_alike = all(np.array_equal(saved_modules[0], other) for other in saved_modules[1:])
        if name in sums and not touching:
            yield name, None
        elif saved_modules and len(saved_modules) == len(touching) and is_whole and are_alike:
            yield name, saved_modules[0]
        else:
            target.original()


def _touches(adapter: LowRankAdapter, name: str) -> bool:
    if name in adapter.replaced or name in adapter.added:
        return True
    return any(factors.target == name for factors in adapter.factors.values())


def _coefficients(tracer: Tracer, output: OutputTensor) -> dict[str, float] | None:
    try:
        traced = tracer.trace(output)
    except RecipeError:
        return None  # the plan has it as a finding
    found = coefficients(traced.output)
    if found is None or any(leaf.tensor != output.name for leaf in traced.sources):
        return None
    if any(term.rounded_to is not None for term in found):
        return None
    sums: dict[str, float] = {}
    for term, coefficient in found.items():
        label = traced.sources[term.index].checkpoint
        sums[label] = sums.get(label, 0.0) + coefficient
    return sums


def _dtype(document: RecipeDocument, loaded: Sequence[Loaded]) -> DType:
    named = document.out_dtype or document.dtype
    return DType.parse(named) if named else promote([one.adapter.dtype for one in loaded])


def _dialect(form: AdapterForm, loaded: Sequence[Loaded]) -> Dialect:
    own = {one.dialect for one in loaded}
    common = next((d for d in _WRITTEN if own == {d}), None)
    dialect: Dialect = form.dialect or common or "peft"
    flattened = {one.flattened for one in loaded}
    if len(flattened) > 1 or (True in flattened and dialect != "kohya"):
        one = next(one for one in loaded if one.flattened)
        raise CompatibilityError(
            f"{shown(one.source)} has names without dots, which only a base can tell from those of other formats: "
            "give the base of the adapters, as `base_model` in a recipe and as --base of `adapter combine`."
        )
    return dialect


def _about_adapters(loaded: Mapping[str, Loaded]) -> list[Finding]:
    """What is noteworthy of the adapters beside each other."""
    adapters = [one.adapter for one in loaded.values()]
    found = absences(aligned(adapters, list(loaded)), list(loaded))
    named = {a.base_reference: label for label, a in zip(loaded, adapters, strict=True)}
    named.pop(None, None)
    if len(named) > 1:
        listed = ", ".join(f"{label} {shown(reference)}" for reference, label in named.items())
        found.append(
            Finding(
                Severity.WARNING,
                "other-base",
                "adapters",
                f"The adapters name different bases ({listed})",
                "make sure that these are the same weights",
            )
        )
    return found


def _findings(result: AdapterResult) -> list[Finding]:
    is_cut = result.largest or not result.bound.is_open
    found = []
    if result.sums:
        done = "clustered (LoRA-LEGO)" if result.lego else "added as factors, exactly"
        cut = ", and are cut as `adapter:` says" if is_cut and not result.lego else ""
        same = "" if result.coordinates is None else "; a sum is the same in every space"
        found.append(
            Finding(
                Severity.NOTE,
                "factored",
                "adapter",
                f"The changes of {counted(len(result.sums), 'tensor')} are {done}{cut}{same}",
            )
        )
    in_space = [name for name in result.computed if result.targets[name].in_space]
    if in_space and result.coordinates is not None:
        kept = "cut as `adapter:` says" if is_cut else "kept exactly"
        found.append(
            Finding(
                Severity.NOTE,
                "in-space",
                "adapter",
                f"The changes of {counted(len(in_space), 'tensor')} are merged as coordinates in the space "
                f"{result.coordinates.name} and {kept}",
            )
        )
    dense = len(result.computed) - len(in_space)
    if dense:
        kept = "as `adapter:` says" if is_cut else "to the largest rank of the adapters"
        found.append(
            Finding(
                Severity.NOTE,
                "decomposed",
                "adapter",
                f"The changes of {counted(dense, 'tensor')} are computed dense and cut {kept}",
                "give `adapter: {rank: N}` or `{energy: T}` to keep more or less of them",
            )
        )
    return found
