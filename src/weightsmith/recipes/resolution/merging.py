"""The resolution of one recipe, and of the recipes inside it, into output tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from weightsmith.adapters import Reference
from weightsmith.errors import RecipeError
from weightsmith.findings import Finding, Severity
from weightsmith.recipes.language.free_recipes import names_in
from weightsmith.recipes.language.mentioned import ModelLike, base_of, models_of
from weightsmith.recipes.language.schema import (
    ModelEntry,
    Module,
    RecipeDocument,
    RecipeRule,
    Slice,
    SliceSource,
    plain,
)
from weightsmith.recipes.resolution.combine import Combiner
from weightsmith.recipes.resolution.formula import OutputTensor
from weightsmith.recipes.resolution.input_chain import Views
from weightsmith.recipes.resolution.inputs import Inputs
from weightsmith.recipes.resolution.lone_files import LoneFiles
from weightsmith.recipes.resolution.modifying import closest
from weightsmith.recipes.resolution.output_sections import (
    Level,
    MergeSection,
    MethodPlan,
    SectionSource,
    are_alike,
    treatment_of,
)
from weightsmith.recipes.resolution.placement import Placed, place_models, place_slices
from weightsmith.recipes.resolution.postprocess import post_steps, step_statistics
from weightsmith.recipes.resolution.result import RecipeResult, RecipeScope
from weightsmith.recipes.resolution.slice_ranges import slice_length
from weightsmith.recipes.resolution.spelled_views import have_common_names
from weightsmith.recipes.resolution.untying import untied_views
from weightsmith.recipes.resolution.views import View
from weightsmith.tensors import DType, Place

# Above all models that there are; a layer's number in a file may be any.
_MOST_LAYERS = 10_000


@dataclass(slots=True)
class _Work:
    """What the parts of one recipe share, and add to, while it is resolved."""

    document: RecipeDocument
    scope: RecipeScope
    config_source: View
    base: View | None
    combiner: Combiner
    items: list[OutputTensor] = field(default_factory=list)
    bases: dict[str, OutputTensor] = field(default_factory=dict)
    layer_sources: tuple[int, ...] | None = None
    used_rules: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Frame:
    """What `models:` or `slices:` are read in: the whole recipe, or one of its modules.

    `restrict` narrows a view to the tensors of the module.
    """

    owner: RecipeDocument | Module
    where: str
    scope: str
    base: View | None
    levels: tuple[Level, ...]
    restrict: Callable[[View], View]


class Resolver:
    """Resolves recipes, and those inside them, over `views` of the models that `inputs` opens.

    `unties` is what the outermost recipe says about heads, for all of them: whether tied checkpoints are given one of
    their own where they meet others, or always.
    """

    def __init__(self, inputs: Inputs, views: Views, *, unties: bool | Literal["always"]) -> None:
        self.inputs = inputs
        self._views = views
        self._unties = unties
        self._problems = inputs.problems

    def result(
        self, document: RecipeDocument, *, inherited: str, scope: str, seed: int = 0
    ) -> RecipeResult:
        """Resolve one recipe; `scope` tells its merges from those of other recipes.

        `inherited` is the semantics and `seed` the seed where the recipe has none of its own.
        """
        semantics = document.semantics or inherited
        seed = seed if document.seed is None else document.seed
        own = RecipeScope(self._views, semantics, scope, seed, document.path)
        within, named = self._chained(document, own)
        self.inputs.check_ties(named)
        base = self._base(document, within)
        config_source = base or named[0]
        if document.donor is not None:
            config_source = self.view(document.donor, within)
        kept = [self.view(rule.keep, within) for rule in document.rules or () if rule.keep]
        self.inputs.check_configurations(
            config_source, [*named, *kept], document.accept or (), is_partial=bool(document.modules)
        )
        combiner = self._combiner(document, semantics, seed)
        work = _Work(document, within, config_source, base, combiner)
        items: tuple[OutputTensor, ...] = ()
        if have_common_names(document, config_source, named, self._problems):
            self._combined(work)
            steps = step_statistics(document, base, combiner, self.inputs.measured)
            items = tuple(post_steps(document, work.items, work.bases, within, steps))
            self._note_unused(work.combiner)
            self._warn_of_idle_rules(work)
        return RecipeResult(
            items=items,
            config_source=config_source,
            base=base,
            inputs=tuple(named),
            bases=work.bases,
            layer_sources=work.layer_sources,
            stack=config_source.main_stack,
            scope=within,
            output_dtype=work.combiner.output_dtype,
            model_view=lambda model, where: self.view(model, replace(within, name=where)),
        )

    def _combined(self, work: _Work) -> None:
        document = work.document
        if document.expression is not None:
            self._expression(work, document.expression)
        elif document.modules is not None:
            self._modules(work, document.modules)
        else:
            levels = (document.parameters or {},)
            frame = _Frame(document, "", work.scope.name, work.base, levels, _whole)
            self._part(work, frame, document.models, document.slices)

    def _chained(
        self, document: RecipeDocument, scope: RecipeScope
    ) -> tuple[RecipeScope, list[View]]:
        """The scope with the steps that one recipe decides for its own models, and the views of these."""
        named = self._named_views(document, scope)
        if not self._unties:
            return scope, named
        is_always = self._unties == "always"
        scope = replace(scope, views=untied_views(scope.views, named, is_always=is_always))
        return scope, self._named_views(document, scope)

    def view(self, model: ModelLike, scope: RecipeScope) -> View:
        """The tensors of a model: a checkpoint's, or those that a recipe gives, which it gives wherever it stands."""
        if isinstance(model, Reference):
            return scope.views.view(model)
        return self.inputs.recipe_view(
            (scope.semantics, scope.seed, repr(plain(model)), names_in(model)),
            model.name or "merge",
            lambda label: self.result(
                model, inherited=scope.semantics, scope=f"{scope.name}/{label}", seed=scope.seed
            ),
        )

    def _named_views(self, document: RecipeDocument, scope: RecipeScope) -> list[View]:
        """Every model that is merged, in the order of the recipe; the base last."""
        views = [self.view(model, scope) for model in models_of(document)]
        base = self._base(document, scope)
        if base is not None:
            views.append(base)
        return list({id(view): view for view in views}.values())

    def _base(self, document: RecipeDocument, scope: RecipeScope) -> View | None:
        model = base_of(document)
        return None if model is None else self.view(model, scope)

    def _combiner(self, document: RecipeDocument, semantics: str, seed: int) -> Combiner:
        wanted = _dtype(document.dtype)
        output = _dtype(document.out_dtype) or wanted
        for dtype in (wanted, output):
            if dtype is not None and not dtype.is_float:
                raise RecipeError(
                    f"dtype {dtype} cannot hold weights; use float32, bfloat16, float16 or float64."
                )
        rounding = wanted if semantics == "mergekit" else None
        return Combiner(self._problems, document.missing or "error", rounding, output, seed)

    def _expression(self, work: _Work, text: str) -> None:
        from weightsmith.recipes.resolution.arithmetic import expression_items

        models = (work.document.checkpoints or {}).items()
        files = work.document.statistics or {}
        sources = {}
        for name, model in models:
            view = self.view(model, work.scope)
            measured = tuple(
                self.inputs.measured(file, view, work.base) for file in files.get(name, ())
            )
            sources[name] = SectionSource(view, statistics=measured)
        made = expression_items(
            text, sources, work.base, work.config_source, work.combiner, work.scope
        )
        for item, base in made:
            self._emit(work, item, base)

    def _part(
        self,
        work: _Work,
        frame: _Frame,
        models: Sequence[ModelEntry] | None,
        slices: Sequence[Slice] | None,
    ) -> None:
        if models is not None:
            self._models(work, frame, models)
        else:
            self._slices(work, frame, slices or ())

    def _models(self, work: _Work, frame: _Frame, entries: Sequence[ModelEntry]) -> None:
        given = [self._source(work, entry, 0, frame.base) for entry in entries]
        sources, base = _restricted(given, frame.base, frame.restrict)
        if base is not None and not any(source.view is base for source in sources):
            sources.append(SectionSource(base, is_implicit=True))
        where = f"{frame.where}models"
        section = _section(work, frame, where, frame.scope, sources, base, None)
        is_raw = all(not source.view.checkpoint.is_folder for source in sources)
        flat = is_raw and section.preset == "mergekit"
        config_source = frame.restrict(work.config_source)
        self._place(work, place_models(section, config_source, self._problems, flat=flat))

    def _source(
        self, work: _Work, entry: ModelEntry | SliceSource, start: int, base: View | None
    ) -> SectionSource:
        view = self.view(entry.model, work.scope)
        measured = tuple(self.inputs.measured(file, view, base) for file in entry.statistics or ())
        return SectionSource(view, start, entry.parameters or {}, statistics=measured)

    def _slices(self, work: _Work, frame: _Frame, slices: Sequence[Slice]) -> None:
        sections: list[MergeSection] = []
        for i, part in enumerate(slices):
            where = f"{frame.where}slices[{i}]"
            base = frame.base
            if part.base_model is not None:
                base = self.view(part.base_model, work.scope)
            given = [
                self._source(work, source, source.layer_range[0], base) for source in part.sources
            ]
            sources, own_base = _restricted(given, base, frame.restrict)
            section = _section(work, frame, where, frame.scope, sources, own_base, part)
            alike = next((j for j, other in enumerate(sections) if are_alike(section, other)), i)
            sections.append(replace(section, scope=f"{frame.scope}/slices[{alike}]"))
        config_source = frame.restrict(work.config_source)
        if (
            work.scope.semantics == "mergekit"
            and not frame.where
            and len(_families(config_source)) > 1
        ):
            raise RecipeError(
                f"slices: {config_source.label!r} has several stacks of layers "
                f"({', '.join(config_source.stacks)}), and mergekit then requires `modules:`; say there "
                "which one the slices are for."
            )
        lengths = [
            slice_length(p, s, self._problems) for p, s in zip(slices, sections, strict=True)
        ]
        self._note_layers(work, config_source, slices, lengths, frame.where)
        self._place(work, place_slices(sections, lengths, config_source))

    def _note_layers(
        self,
        work: _Work,
        config_source: View,
        slices: Sequence[Slice],
        lengths: Sequence[int],
        where: str,
    ) -> None:
        """Remember which of the config source's layers the output's take the places of."""
        if sum(lengths) > _MOST_LAYERS:
            raise RecipeError(
                f"{where}slices: they come to {sum(lengths)} layers, more than any model has; give shorter ranges."
            )
        order = tuple(
            part.sources[0].layer_range[0] + k
            for part, length in zip(slices, lengths, strict=True)
            for k in range(length)
        )
        if len(order) == config_source.layer_count and order == tuple(range(len(order))):
            return
        if config_source.main_stack == work.config_source.main_stack:
            work.layer_sources = order
            return
        self._problems.add(
            Finding(
                Severity.WARNING,
                "config-layers",
                where.rstrip("."),
                f"{where}slices: the number of layers in the configuration is kept for the main "
                f"stack only, not for {config_source.main_stack!r}",
                "correct the configuration of the result by hand",
            )
        )

    def _modules(self, work: _Work, modules: Mapping[str, Module]) -> None:
        from weightsmith.recipes.resolution.correspondence import in_config_source_names
        from weightsmith.recipes.resolution.modules import split_modules

        split = split_modules(work.config_source, modules)
        for name, module in modules.items():
            if not split.names.get(name):
                raise RecipeError(
                    f"modules.{name}: no tensor of {work.config_source.label!r} belongs to it; give it a "
                    f"`match:`, or use one of {', '.join(split.known)}."
                )

            def restrict(view: View, name: str = name, module: Module = module) -> View:
                where = f"modules.{name}"
                mine = in_config_source_names(
                    view, work.config_source, module.prefix, where, self._problems
                )
                return mine.only(split_modules(mine, modules).names.get(name, ()))

            base = work.base
            if module.base_model is not None:
                base = self.view(module.base_model, work.scope)
            levels = (module.parameters or {}, work.document.parameters or {})
            scope = f"{work.scope.name}/{name}"
            frame = _Frame(module, f"modules.{name}.", scope, base, levels, restrict)
            self._part(work, frame, module.models, module.slices)
        self._leftover(work, split.leftover)

    def _leftover(self, work: _Work, names: Iterable[str]) -> None:
        """Tensors of no module: mergekit leaves them out, native recipes copy the config source's."""
        for name in names:
            item = work.config_source.items[name]
            if work.scope.semantics == "mergekit":
                self._problems.about(
                    name,
                    Severity.WARNING,
                    "not-written",
                    "modules",
                    "Tensors of no module are not written, as in mergekit",
                    "add a module for them",
                )
                continue
            self._problems.about(
                name,
                Severity.NOTE,
                "copied",
                work.config_source.label,
                f"Tensors of no module are copied from {work.config_source.label!r}",
                "",
            )
            dtype = work.combiner.output_dtype if item.dtype.is_float else None
            self._emit(work, replace(item, dtype=dtype or item.dtype), item)

    def _note_unused(self, combiner: Combiner) -> None:
        for label, is_used in combiner.uses.items():
            if not is_used:
                self._problems.add(
                    Finding(
                        Severity.ERROR,
                        "unused-statistics",
                        label,
                        f"The statistics {label!r} are of no tensor that is merged by them",
                        "collect them over the tensors that the method weighs, or leave them out and take another",
                    )
                )

    def _warn_of_idle_rules(self, work: _Work) -> None:
        for number in range(len(work.document.rules or ())):
            if number not in work.used_rules:
                self._problems.add(
                    Finding(
                        Severity.WARNING,
                        "idle-rule",
                        f"rules[{number}]",
                        f"rules[{number}] changes nothing: its match selects no merged tensor that the rules before "
                        "it leave",
                        "correct its match, or leave it out; `weightsmith inspect MODEL --tensors` shows names, roles "
                        "and layers",
                    )
                )

    def _place(self, work: _Work, placed: Iterator[Placed]) -> None:
        rules = work.document.rules or ()
        # Only while a section lives can no other one have its identity.
        treatments: dict[tuple[int, int], tuple[MergeSection, MethodPlan]] = {}
        lone = LoneFiles(work.config_source, work.combiner)
        for one in placed:
            number = _first_match(rules, one.place)
            work.used_rules.add(number)
            key = (id(one.section), number)
            if key not in treatments:
                rule = rules[number] if number >= 0 else None
                treatments[key] = one.section, self._treatment(work, one.section, rule, number)
            _, treatment = treatments[key]
            for item in lone.made(one, treatment):
                self._emit(work, item, one.base)

    def _treatment(
        self, work: _Work, section: MergeSection, rule: RecipeRule | None, number: int
    ) -> MethodPlan:
        if rule is None:
            return treatment_of(section)
        if rule.keep is not None:
            kept = self.view(rule.keep, work.scope)
            return replace(treatment_of(section), keep=kept)
        # Statistics over the whole model go on across a rule that only changes parameters.
        changes = rule.merge_method is not None or rule.semantics is not None
        scope = f"{section.scope}/rules[{number}]" if changes else section.scope
        return treatment_of(replace(section, where=f"rules[{number}]"), rule, scope)

    def _emit(self, work: _Work, item: OutputTensor, base: OutputTensor | None) -> None:
        work.items.append(item)
        if base is not None:
            work.bases[item.name] = base


def _first_match(rules: Sequence[RecipeRule], place: Place) -> int:
    """The number of the first rule that selects a tensor, -1 where none does."""
    for number, rule in enumerate(rules):
        if rule.match.matches(place):
            return number
    return -1


def _whole(view: View) -> View:
    return view


def _dtype(name: str | None) -> DType | None:
    return DType.parse(name) if name is not None else None


def _section(
    work: _Work,
    frame: _Frame,
    where: str,
    scope: str,
    sources: Sequence[SectionSource],
    base: View | None,
    part: Slice | None,
) -> MergeSection:
    """A section with the method and semantics of the closest level that names them."""
    method = (part and part.merge_method) or frame.owner.merge_method or work.document.merge_method
    preset = (part and part.semantics) or frame.owner.semantics or work.scope.semantics
    own = (part.parameters or {},) if part is not None else ()
    assert method is not None
    labels = Counter(source.view.label for source in sources)
    repeated = next((label for label, count in labels.items() if count > 1), None)
    if repeated is not None and preset == "mergekit":
        raise RecipeError(
            f"{where}: {repeated!r} is listed twice, which mergekit refuses; combine layers of one "
            "model in a native recipe (`weightsmith: 1`)."
        )
    modify = closest(
        None if part is None else part.modify, frame.owner.modify, work.document.modify
    )
    levels = (*own, *frame.levels)
    return MergeSection(where, scope, tuple(sources), base, method, preset, levels, modify)


def _restricted(
    sources: Sequence[SectionSource], base: View | None, restrict: Callable[[View], View]
) -> tuple[list[SectionSource], View | None]:
    """Sources and base narrowed to a module, one model staying one object."""
    views: dict[int, View] = {}

    def narrowed(view: View) -> View:
        if id(view) not in views:
            views[id(view)] = restrict(view)
        return views[id(view)]

    narrow = [replace(source, view=narrowed(source.view)) for source in sources]
    return narrow, None if base is None else narrowed(base)


def _families(view: View) -> set[str]:
    stacks = view.checkpoint.stacks.values()
    return {stack.family for stack in stacks if stack.prefix in view.stacks}
