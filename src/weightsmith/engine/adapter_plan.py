"""The plan of a recipe whose models are adapters alone, and whose result is one too.

Each adapter is taken as a checkpoint of its changes and the base as zeros, so every method sees task vectors. Where the
result is a sum of the changes with fixed coefficients it stays factored; else each tensor's change is computed dense,
by itself, and decomposed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from weightsmith.adapters.as_changes import (
    Loaded,
    Target,
    changes_of,
    named_by,
    targets_of,
    unchanged,
)
from weightsmith.adapters.bounds import Bound
from weightsmith.adapters.low_rank import low_rank_adapter
from weightsmith.adapters.opening import stored_tensors
from weightsmith.adapters.reading import open_adapter
from weightsmith.adapters.writing import Dialect
from weightsmith.checkpoints import BareAdapter, Checkpoint
from weightsmith.engine.linearity import coefficients
from weightsmith.engine.trace import Tracer
from weightsmith.errors import CompatibilityError, RecipeError
from weightsmith.findings import Finding, Severity
from weightsmith.methods import modifiers, registry
from weightsmith.recipes import Recipe
from weightsmith.recipes.formula import OutputTensor, Resolved
from weightsmith.recipes.mentioned import merged_references, other_references
from weightsmith.recipes.references import ModelRef
from weightsmith.recipes.resolve import opener_of, resolve
from weightsmith.recipes.schema import AdapterForm, RecipeDocument
from weightsmith.tensors.dtypes import DType, promote
from weightsmith.tensors.messages import shown
from weightsmith.wording import counted

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
)


@dataclass(frozen=True, slots=True, eq=False)
class AdapterResult:
    """How the result of a plan is stored as an adapter.

    `sums` has the coefficients of the adapters, by label, of every tensor that stays factored; `ranks` the largest rank
    of an input by tensor. `base` is opened where the recipe names one.
    """

    loaded: Mapping[str, Loaded]
    targets: Mapping[str, Target]
    sums: Mapping[str, Mapping[str, float]]
    bound: Bound
    dialect: Dialect
    dtype: DType
    base: Checkpoint | None

    def is_given(self, label: str) -> bool:
        """Whether an input is one that the recipe names: not the zeros that stand for a base."""
        return label in self.loaded or self.base is not None

    def bound_of(self, name: str) -> Bound:
        """How far the change of a dense tensor is cut: as asked for, else to the largest rank of an adapter there."""
        if not self.bound.is_open:
            return self.bound
        return Bound(rank=max(self._ranks(name), default=1))

    def predicted_rank(self, name: str) -> int:
        """The rank of a result before anything is computed; an upper limit where energy or error decide."""
        target = self.targets[name]
        rows, columns = target.units[0].change.shape
        ranks = self._ranks(name)
        most = sum(ranks) if name in self.sums else max(ranks, default=1)
        if self.bound.rank is not None:
            most = self.bound.rank if name not in self.sums else min(most, self.bound.rank)
        return max(1, min(most, rows, columns))

    @property
    def nbytes(self) -> int:
        """Bytes of the result's tensors, about."""
        numbers = 0
        for name, target in self.targets.items():
            if not target.units:
                numbers += math.prod(target.shape)
                continue
            rows, columns = target.units[0].change.shape
            numbers += len(target.units) * self.predicted_rank(name) * (rows + columns)
        return numbers * self.dtype.itemsize

    @property
    def held_bytes(self) -> int:
        """Memory of the factors, and of decomposing the largest dense change."""
        held = sum(8 * one.adapter.parameters for one in self.loaded.values())
        dense = [t.matrix for name, t in self.targets.items() if name not in self.sums and t.units]
        return held + 8 * max((4 * m * n + 8 * min(m, n) ** 2 for m, n in dense), default=0)

    def _ranks(self, name: str) -> list[int]:
        """The rank of each adapter that changes a tensor; of fused experts the largest."""
        keys = [unit.key for unit in self.targets[name].units]
        found = ([one.adapter.factors.get(key) for key in keys] for one in self.loaded.values())
        ranks = ([factors.change.rank for factors in row if factors is not None] for row in found)
        return [max(row) for row in ranks if row]


def resolve_adapters(
    recipe: Recipe, opener: Callable[[str], Checkpoint], found: BareAdapter
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
    targets = targets_of(list(loaded.values()), base)
    path = next(iter(loaded.values())).path
    views = {reference: changes_of(one, targets) for reference, one in loaded.items()}
    views |= {
        reference: unchanged(targets, checkpoint.path, reference)
        for reference, checkpoint in opened.items()
        if isinstance(checkpoint, Checkpoint)
    }
    views[NO_BASE] = unchanged(targets, path, NO_BASE)
    resolved = resolve(replace(recipe, document=_over_changes(document), base_dir=None), views)
    used = {label: c.source for label, c in resolved.checkpoints.items() if c.source in loaded}
    by_label = {label: loaded[source] for label, source in used.items()}
    form = document.adapter or AdapterForm()
    result = AdapterResult(
        loaded=by_label,
        targets=targets,
        sums=dict(_sums(resolved, targets, set(by_label))),
        bound=Bound(form.rank, form.energy, form.error),
        dialect=_dialect(form, list(by_label.values())),
        dtype=_dtype(document, list(by_label.values())),
        base=base,
    )
    findings = (*resolved.findings, *_findings(result))
    return replace(resolved, recipe=recipe, findings=findings, shard_bytes=2**62), result


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
    recipe: Recipe, opener: Callable[[str], Checkpoint], found: BareAdapter
) -> dict[str, Checkpoint | BareAdapter]:
    """Every model as the adapter that it is, or as the base's checkpoint."""
    document = recipe.document
    bases = _bases(document)
    opened: dict[str, Checkpoint | BareAdapter] = {}
    for reference in [*merged_references(document), *other_references(document)]:
        try:
            opened[reference] = opener(reference)
        except BareAdapter as adapter:
            opened[reference] = adapter
            continue
        if reference not in bases:
            raise found
    if sum(isinstance(one, Checkpoint) for one in opened.values()) > 1:
        raise RecipeError(
            "The recipe merges adapters of several bases; give the base that all of them were trained on."
        )
    return opened


def _bases(document: RecipeDocument) -> set[str]:
    named = [document.base_model, (document.checkpoints or {}).get("base")]
    return {str(model) for model in named if isinstance(model, ModelRef)}


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
    )


def _over_changes(document: RecipeDocument) -> RecipeDocument:
    """The recipe of the changes themselves, with a base of zeros where a method wants one."""
    changes: dict[str, object] = {"adapter": None, "dtype": None, "out_dtype": None}
    if document.base_model is None and document.expression is None and _wants_base(document):
        changes["base_model"] = ModelRef(path=NO_BASE)
    if document.models is not None:
        changes["models"] = tuple(
            entry
            if isinstance(entry.model, ModelRef)
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
    resolved: Resolved, targets: Mapping[str, Target], labels: set[str]
) -> Iterator[tuple[str, dict[str, float]]]:
    """The tensors whose result is a sum of the adapters' changes, with its coefficients by label."""
    tracer = Tracer()
    for output in resolved.outputs:
        found = _coefficients(tracer, output) if targets[output.name].units else None
        if found is not None:
            yield output.name, {label: c for label, c in found.items() if label in labels}


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
            f"{shown(one.source)} has names without dots, which only a base can tell from those of other dialects: "
            "give the base of the adapters, as `base_model` in a recipe and as --base of `adapter combine`."
        )
    return dialect


def _findings(result: AdapterResult) -> list[Finding]:
    matrices = [name for name, target in result.targets.items() if target.units]
    dense = [name for name in matrices if name not in result.sums]
    found = []
    if result.sums:
        cut = "" if result.bound.is_open else ", and are cut as `adapter:` says"
        found.append(
            Finding(
                Severity.NOTE,
                "factored",
                "adapter",
                f"The changes of {counted(len(result.sums), 'tensor')} are added as factors, exactly{cut}",
            )
        )
    if dense:
        kept = (
            "as `adapter:` says"
            if not result.bound.is_open
            else "to the largest rank of the adapters"
        )
        found.append(
            Finding(
                Severity.NOTE,
                "decomposed",
                "adapter",
                f"The changes of {counted(len(dense), 'tensor')} are computed dense and cut {kept}",
                "give `adapter: {rank: N}` or `{energy: T}` to keep more or less of them",
            )
        )
    return found
