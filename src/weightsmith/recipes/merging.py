"""The resolution of one recipe, and of the recipes inside it, into output tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Union

from weightsmith.checkpoints import Checkpoint, Tying, untied
from weightsmith.checkpoints.ties import tie_findings, vocabulary_head
from weightsmith.errors import RecipeError
from weightsmith.findings import Finding, Severity
from weightsmith.recipes.arithmetic import expression_items
from weightsmith.recipes.combine import Combiner, rounded
from weightsmith.recipes.formula import Formula, Leaf, Same
from weightsmith.recipes.modules import split_modules
from weightsmith.recipes.placement import Placed, place_models, place_slices
from weightsmith.recipes.postprocess import post_steps
from weightsmith.recipes.problems import Problems
from weightsmith.recipes.recipe import plain
from weightsmith.recipes.references import ModelRef
from weightsmith.recipes.schema import ModelEntry, Module, RecipeDocument, Rule, Slice
from weightsmith.recipes.sections import Level, Section, Source, Treatment, treatment_of, unused_label
from weightsmith.recipes.views import Item, View, view_of
from weightsmith.tensors.dtypes import DType

ModelLike = Union[ModelRef, RecipeDocument]
Restrict = Callable[[View], View]


@dataclass(frozen=True, slots=True)
class Result:
    """The outputs of one recipe with what gave them their frame.

    `inputs` are the views that were merged; `bases` holds the base's tensor for each output that has one.
    """

    items: tuple[Item, ...]
    donor: View
    base: View | None
    inputs: tuple[View, ...]
    bases: Mapping[str, Item]
    layer_sources: tuple[int, ...] | None
    semantics: str
    output_dtype: DType | None


@dataclass(slots=True)
class _Work:
    """What the parts of one recipe add to while it is resolved."""

    document: RecipeDocument
    semantics: str
    scope: str
    donor: View
    base: View | None
    combiner: Combiner
    items: list[Item] = field(default_factory=list)
    bases: dict[str, Item] = field(default_factory=dict)
    layer_sources: tuple[int, ...] | None = None
    treatments: dict[tuple[int, int], Treatment] = field(default_factory=dict)


class Resolver:
    """Opens models once each, and resolves recipes into items."""

    def __init__(self, opener: Callable[[str], Checkpoint], *, untie: bool) -> None:
        self.checkpoints: dict[str, Checkpoint] = {}
        self.problems = Problems()
        self._opener = opener
        self._untie = untie
        self._views: dict[object, View] = {}
        self._recipe_labels: list[str] = []

    def result(self, document: RecipeDocument, *, inherited: str, scope: str) -> Result:
        """Resolve one recipe; `scope` tells its merges from those of other recipes."""
        semantics = document.semantics or inherited
        named = self._named_views(document, semantics, scope)
        if self._untie:
            self._untie_all(named)
            named = self._named_views(document, semantics, scope)
        self._check_ties(named)
        base = self._base(document, semantics, scope)
        donor = self.view(document.donor, semantics, scope) if document.donor is not None else base or named[0]
        work = _Work(document, semantics, scope, donor, base, self._combiner(document, semantics))
        if document.expression is not None:
            self._expression(work)
        elif document.modules is not None:
            self._modules(work, document.modules)
        elif document.models is not None:
            self._models(work, document.models, base, (document.parameters or {},), "models", scope, lambda v: v, document)
        else:
            self._slices(work, document.slices or (), base, (document.parameters or {},), "slices", scope, lambda v: v, document)
        items = post_steps(work.document, work.items, work.bases, semantics, scope)
        output = document.out_dtype or document.dtype
        return Result(
            tuple(items), donor, base, tuple(named), work.bases, work.layer_sources, semantics,
            DType(output) if output else None,
        )

    def view(self, model: ModelLike, semantics: str, scope: str) -> View:
        """The tensors of a model: a checkpoint's, or those that a recipe gives."""
        key = ("path", str(model)) if isinstance(model, ModelRef) else ("recipe", semantics, repr(plain(model)))
        if key not in self._views:
            if isinstance(model, ModelRef):
                self._views[key] = self._open(str(model))
            else:
                self._views[key] = self._nested(model, semantics, scope)
        return self._views[key]

    def label_of(self, view: View) -> str:
        """The label of the checkpoint that a view's configuration comes from."""
        return next(label for label, checkpoint in self.checkpoints.items() if checkpoint is view.checkpoint)

    def _open(self, reference: str) -> View:
        checkpoint = self._opener(reference)
        label = unused_label(checkpoint.name, self.checkpoints)
        self.checkpoints[label] = checkpoint
        return view_of(checkpoint, label)

    def _nested(self, document: RecipeDocument, semantics: str, scope: str) -> View:
        label = unused_label(document.name or "merge", self._recipe_labels)
        self._recipe_labels.append(label)
        result = self.result(document, inherited=semantics, scope=f"{scope}/{label}")
        is_rounded = result.semantics == "mergekit" or result.output_dtype is not None
        items = {
            item.name: replace(item, formula=self._as_stored(item)) if is_rounded else item for item in result.items
        }
        return View(label, items, result.donor.checkpoint, result.donor.ties, is_recipe=True)

    def _as_stored(self, item: Item) -> Formula:
        """The values that an output would have if it were written and read again."""
        formula = item.formula
        if not item.dtype.is_float or isinstance(formula, Same):
            return formula
        if isinstance(formula, Leaf):
            return rounded(formula, self.checkpoints[formula.checkpoint].tensors[formula.tensor].dtype, item.dtype)
        return rounded(formula, DType.FLOAT64, item.dtype)

    def _named_views(self, document: RecipeDocument, semantics: str, scope: str) -> list[View]:
        """Every model that is merged, in the order of the recipe; the base last."""
        models: list[ModelLike] = [entry.model for entry in document.models or ()]
        models += [source.model for part in document.slices or () for source in part.sources]
        for module in (document.modules or {}).values():
            models += [entry.model for entry in module.models or ()]
            models += [source.model for part in module.slices or () for source in part.sources]
        models += list((document.checkpoints or {}).values())
        base = self._base(document, semantics, scope)
        views = [self.view(model, semantics, scope) for model in models]
        return list({id(view): view for view in (*views, *((base,) if base is not None else ()))}.values())

    def _base(self, document: RecipeDocument, semantics: str, scope: str) -> View | None:
        model = document.base_model
        if document.expression is not None:
            names = document.checkpoints or {}
            if model is None:
                model = names.get("base")
            elif isinstance(model, ModelRef) and str(model) in names:
                model = names[str(model)]
        return None if model is None else self.view(model, semantics, scope)

    def _untie_all(self, views: Sequence[View]) -> None:
        """Give tied checkpoints a head of their own where another one has it."""
        heads = [
            vocabulary_head(v.checkpoint.tensors, v.checkpoint.roles) for v in views if v.checkpoint.tying is Tying.UNTIED
        ]
        if not heads or heads[0] is None:
            return
        for key, view in list(self._views.items()):
            if view in views and not view.is_recipe and view.checkpoint.tying is Tying.TIED:
                checkpoint = untied(view.checkpoint, heads[0])
                self.checkpoints[view.label] = checkpoint
                self._views[key] = view_of(checkpoint, view.label)

    def _check_ties(self, views: Sequence[View]) -> None:
        distinct = {id(v.checkpoint): v.checkpoint for v in views}
        for finding in tie_findings(list(distinct.values())):
            self.problems.add(finding)

    def _combiner(self, document: RecipeDocument, semantics: str) -> Combiner:
        wanted = DType(document.dtype) if document.dtype else None
        output = DType(document.out_dtype) if document.out_dtype else wanted
        for dtype in (wanted, output):
            if dtype is not None and not dtype.is_float:
                raise RecipeError(f"dtype {dtype} cannot hold weights; use float32, bfloat16, float16 or float64.")
        return Combiner(self.problems, document.missing or "error", wanted if semantics == "mergekit" else None, output)

    def _expression(self, work: _Work) -> None:
        views = {
            name: self.view(model, work.semantics, work.scope) for name, model in (work.document.checkpoints or {}).items()
        }
        for item, base in expression_items(
            work.document.expression or "", views, work.base, work.donor, work.combiner, work.semantics, work.scope
        ):
            self._emit(work, item, base)

    def _models(
        self,
        work: _Work,
        entries: Sequence[ModelEntry],
        base: View | None,
        levels: tuple[Level, ...],
        where: str,
        scope: str,
        restrict: Restrict,
        owner: RecipeDocument | Module,
    ) -> None:
        method, preset = _method_of(owner, work)
        sources = [
            Source(restrict(self.view(entry.model, work.semantics, work.scope)), 0, entry.parameters or {})
            for entry in entries
        ]
        own_base = restrict(base) if base is not None else None
        sources, own_base = _same_views(sources, own_base)
        if own_base is not None and not any(source.view is own_base for source in sources):
            sources.append(Source(own_base, is_implicit=True))
        section = Section(where, scope, tuple(sources), own_base, method, preset, levels)
        _refuse_repetition(section)
        flat = preset == "mergekit" and all(not source.view.checkpoint.is_folder for source in sources)
        self._place(work, place_models(section, restrict(work.donor), self.problems, flat=flat))

    def _slices(
        self,
        work: _Work,
        slices: Sequence[Slice],
        base: View | None,
        levels: tuple[Level, ...],
        where: str,
        scope: str,
        restrict: Restrict,
        owner: RecipeDocument | Module,
    ) -> None:
        sections = []
        for i, part in enumerate(slices):
            method, preset = _method_of(owner, work, part)
            part_base = self.view(part.base_model, work.semantics, work.scope) if part.base_model is not None else base
            sources = [
                Source(restrict(self.view(s.model, work.semantics, work.scope)), s.layer_range[0], s.parameters or {})
                for s in part.sources
            ]
            sources, own_base = _same_views(sources, restrict(part_base) if part_base is not None else None)
            section = Section(
                f"{where}[{i}]", f"{scope}/{where}[{i}]", tuple(sources), own_base, method, preset,
                (part.parameters or {}, *levels),
            )
            _refuse_repetition(section)
            sections.append(section)
        lengths = [self._slice_length(part, section) for part, section in zip(slices, sections, strict=True)]
        donor = restrict(work.donor)
        if work.semantics == "mergekit" and owner is work.document and len(_families(donor)) > 1:
            raise RecipeError(
                f"{where}: {donor.label!r} has several stacks of layers ({', '.join(donor.stacks)}), and mergekit then "
                "requires `modules:`; say there which one the slices are for."
            )
        work.layer_sources = tuple(
            source.layer_range[0] + k
            for part, length in zip(slices, lengths, strict=True)
            for source in part.sources[:1]
            for k in range(length)
        )
        self._place(work, place_slices(sections, lengths, donor))

    def _slice_length(self, part: Slice, section: Section) -> int:
        lengths = {source.layer_range[1] - source.layer_range[0] for source in part.sources}
        if len(lengths) > 1:
            listed = ", ".join(str(list(source.layer_range)) for source in part.sources)
            raise RecipeError(
                f"{section.where}: all sources of a slice must have equally many layers, but the ranges are {listed}."
            )
        for given, source in zip(part.sources, section.sources, strict=True):
            count = source.view.layer_count
            if given.layer_range[1] > count:
                self.problems.add(
                    Finding(
                        Severity.ERROR,
                        "layer-range",
                        source.view.label,
                        f"{section.where}: layer_range {list(given.layer_range)} reaches past the {count} layers of "
                        f"{source.view.label!r}",
                        f"end it at {count} at most",
                    )
                )
        return lengths.pop()

    def _modules(self, work: _Work, modules: Mapping[str, Module]) -> None:
        donor_split = split_modules(work.donor, modules)
        for name, module in modules.items():
            if not donor_split.names.get(name):
                raise RecipeError(
                    f"modules.{name}: no tensor of {work.donor.label!r} belongs to it; give it a `match:`, or use one of "
                    f"{', '.join(donor_split.known)}."
                )

            def restrict(view: View, name: str = name) -> View:
                return view.only(split_modules(view, modules).names.get(name, ()))

            base = work.base
            if module.base_model is not None:
                base = self.view(module.base_model, work.semantics, work.scope)
            levels = (module.parameters or {}, work.document.parameters or {})
            where, scope = f"modules.{name}", f"{work.scope}/{name}"
            if module.models is not None:
                self._models(work, module.models, base, levels, f"{where}.models", scope, restrict, module)
            else:
                self._slices(work, module.slices or (), base, levels, f"{where}.slices", scope, restrict, module)
        self._leftover(work, donor_split.leftover)

    def _leftover(self, work: _Work, names: Iterable[str]) -> None:
        """Tensors of no module: mergekit leaves them out, native recipes copy the donor's."""
        for name in names:
            item = work.donor.items[name]
            if work.semantics == "mergekit":
                self.problems.about(
                    name, Severity.WARNING, "not-written", "modules", "Tensors of no module are not written, as in mergekit",
                    "add a module for them",
                )
                continue
            self.problems.about(
                name, Severity.NOTE, "copied", work.donor.label, f"Tensors of no module are copied from {work.donor.label!r}", ""
            )
            dtype = work.combiner.output_dtype if item.dtype.is_float else None
            self._emit(work, replace(item, dtype=dtype or item.dtype), item)

    def _place(self, work: _Work, placed: Iterator[Placed]) -> None:
        rules = work.document.rules or ()
        for one in placed:
            number = next((i for i, rule in enumerate(rules) if rule.match.matches(one.output.place)), -1)
            key = (id(one.section), number)
            treatment = work.treatments.get(key)
            if treatment is None:
                treatment = self._treatment(work, one.section, rules[number] if number >= 0 else None, number)
                work.treatments[key] = treatment
            item = work.combiner.combine(one.section, treatment, one.items, one.base, one.output)
            if item is not None:
                self._emit(work, replace(item, layers=one.layers, block=one.block), one.base)

    def _treatment(self, work: _Work, section: Section, rule: Rule | None, number: int) -> Treatment:
        if rule is None:
            return treatment_of(section)
        where = replace(section, where=f"rules[{number}]")
        if rule.keep is not None:
            kept = self.view(rule.keep, work.semantics, work.scope)
            return replace(treatment_of(section), keep=kept)
        return treatment_of(where, rule, f"{section.scope}/rules[{number}]")

    def _emit(self, work: _Work, item: Item, base: Item | None) -> None:
        work.items.append(item)
        if base is not None:
            work.bases[item.name] = base


def _method_of(owner: RecipeDocument | Module, work: _Work, part: Slice | None = None) -> tuple[str, str]:
    method = (part and part.merge_method) or owner.merge_method or work.document.merge_method
    preset = (part and part.semantics) or owner.semantics or work.semantics
    assert method is not None
    return method, preset


def _same_views(sources: list[Source], base: View | None) -> tuple[list[Source], View | None]:
    """Restricting makes new views: let those of one model be one object again."""
    by_label: dict[str, View] = {}
    same = [replace(source, view=by_label.setdefault(source.view.label, source.view)) for source in sources]
    return same, None if base is None else by_label.get(base.label, base)


def _refuse_repetition(section: Section) -> None:
    labels = [source.view.label for source in section.sources]
    repeated = next((label for label in labels if labels.count(label) > 1), None)
    if repeated is not None and section.preset == "mergekit":
        raise RecipeError(
            f"{section.where}: {repeated!r} is listed twice, which mergekit refuses; combine layers of one model in a "
            "native recipe (`weightsmith: 1`)."
        )


def _families(view: View) -> set[str]:
    return {stack.family for stack in view.checkpoint.stacks.values() if stack.prefix in view.stacks}
