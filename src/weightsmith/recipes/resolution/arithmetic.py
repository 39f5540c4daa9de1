"""Expressions over checkpoints as formulas of output tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from weightsmith.methods import METRICS, MeasuredOn, registry
from weightsmith.methods import modifiers as registered
from weightsmith.recipes.language.expression_reading import (
    Atom,
    Call,
    Combination,
    Name,
    is_atom,
    parse_expression,
    sole_name,
)
from weightsmith.recipes.language.free_recipes import expression_path
from weightsmith.recipes.language.modifier_calls import measures_from_base
from weightsmith.recipes.resolution.combine import (
    Combiner,
    coarsest,
    output_tensor,
    stored_dtype,
)
from weightsmith.recipes.resolution.formula import Formula, MeasuredLeaves, Merge, OutputTensor, Sum
from weightsmith.recipes.resolution.lone_files import LoneFiles
from weightsmith.recipes.resolution.measured_statistics import (
    MeasuredStatistics,
    Weighing,
    chosen,
    stored_statistics,
    with_metric,
)
from weightsmith.recipes.resolution.output_sections import SectionSource, distinct_labels
from weightsmith.recipes.resolution.redundant_copies import redundant_names
from weightsmith.recipes.resolution.result import RecipeScope
from weightsmith.recipes.resolution.views import View
from weightsmith.tensors import Place

WHERE = "expression"


def expression_items(
    text: str,
    sources: Mapping[str, SectionSource],
    base: View | None,
    config_source: View,
    combiner: Combiner,
    scope: RecipeScope,
) -> Iterator[tuple[OutputTensor, OutputTensor | None]]:
    """Every output of an expression over sources with names, with the base's tensor, in the config source's order."""
    combination = parse_expression(text, sources, scope.semantics, expression_path(scope.path))
    used = {name: sources[name].view for name in dict.fromkeys(_names(combination))}
    measured = {name: source.statistics for name, source in sources.items()}
    order = (config_source, *used.values())
    lone = LoneFiles(config_source, combiner)
    copies = redundant_names([*used.values(), *([base] if base is not None else [])])
    for name in dict.fromkeys(tensor for view in order for tensor in view.items):
        settled = lone.settled(name, used.values()) if "/" in name else None
        if settled is not None:
            yield from ((copied, None) for copied in settled)
        if settled is not None or name in copies:
            continue
        items = {label: view.items[name] for label, view in used.items() if name in view.items}
        if not items:
            continue
        base_item = base.items.get(name) if base is not None else None
        merges = _Merges(name, used, measured, combiner, scope)
        item = _item(name, combination, merges, items, base_item, config_source)
        if item is not None:
            yield item, base_item


def _item(
    name: str,
    combination: Combination,
    merges: _Merges,
    items: dict[str, OutputTensor],
    base: OutputTensor | None,
    config_source: View,
) -> OutputTensor | None:
    used, combiner = merges.views, merges.combiner
    for label, view in used.items():
        if label in items:
            continue
        if combiner.missing == "base" and base is not None:
            items[label] = base
            continue
        combiner.problems.error(
            name,
            "missing-tensor",
            view.label,
            f"Model {view.label!r} lacks tensors that others in the expression have",
            "use checkpoints of one architecture, or set `missing: base`",
        )
        return None
    inputs = [items[label] for label in used]
    frame = [item for item in (config_source.items.get(name), base, inputs[0]) if item is not None]
    first = frame[0]
    if not combiner.fits(WHERE, inputs, name):
        return None
    if not first.dtype.is_float:
        return combiner.exact(base, inputs, first.place)
    if not combiner.fits(WHERE, frame, name):
        return None
    tensors = _Tensors(items, merges, first.place, first.shape)
    return output_tensor(
        first.place, first, tensors.combination(combination), combiner.stored(inputs)
    )


def _names(combination: Combination) -> Iterator[str]:
    for _, atom in combination.terms:
        if isinstance(atom, Name):
            yield atom.name
        else:
            for part in (*((atom.base,) if atom.base is not None else ()), *atom.experts):
                yield from _names(part)


@dataclass(frozen=True, slots=True)
class _Merges:
    """What calls of methods in the expression need to know of one output tensor."""

    tensor: str
    views: Mapping[str, View]
    measured: Mapping[str, Sequence[MeasuredStatistics]]
    combiner: Combiner
    scope: RecipeScope


@dataclass(frozen=True, slots=True)
class _Tensors:
    """The tensors of one output by the names of the expression."""

    items: Mapping[str, OutputTensor]
    of: _Merges
    place: Place
    shape: tuple[int, ...]

    def combination(self, combination: Combination, path: str = "") -> Formula:
        terms = tuple(
            (c, self._atom(atom, f"{path}.{i}")) for i, (c, atom) in enumerate(combination.terms)
        )
        if is_atom(combination):
            return terms[0][1]
        return Sum(terms)

    def _atom(self, atom: Atom, path: str) -> Formula:
        if isinstance(atom, Name):
            return self.of.combiner.cast(self.items[atom.name])
        return self._merge(atom, path)

    def _merge(self, call: Call, path: str) -> Merge:
        base = self.combination(call.base, f"{path}.base") if call.base is not None else None
        spec = registry.get(call.method)
        has_base = spec.base is not registry.Base.IGNORED
        files = self._files(spec, call)
        per_expert = call.per_expert
        if METRICS in spec.statistics:
            per_expert = tuple(
                with_metric(spec, given, call.shared, file, WHERE)
                for given, file in zip(call.per_expert, files, strict=True)
            )
        return Merge(
            method=call.method,
            preset=self.of.scope.semantics,
            shared=call.shared,
            base=base if has_base else None,
            experts=tuple(self.combination(e, f"{path}.{i}") for i, e in enumerate(call.experts)),
            per_expert=per_expert,
            labels=distinct_labels([self._label(expert) for expert in call.experts]),
            scope_id=f"{self.of.scope.name}/{call.method}{path}",
            place=self.place,
            shape=self.shape,
            seed=self.of.scope.seed,
            modifiers=call.modifiers,
            origin=base if measures_from_base(call.modifiers) else None,
            statistics=self._statistics(spec, call, files),
            modifier_statistics=tuple(
                self._statistics(used, call, self._files(used, call))
                for used in (registered.get(m.modifier) for m in call.modifiers)
            ),
            stored=coarsest(
                tuple(
                    stored_dtype(self.items[name], self.of.views[name])
                    for expert in call.experts
                    for name in _names(expert)
                )
            ),
        )

    def _files(self, spec: Weighing, call: Call) -> list[MeasuredStatistics | None]:
        """The file of each expert, or that of the base, of a method or modifier that goes by some."""
        if not spec.statistics:
            return []
        is_base = spec.measured_on is MeasuredOn.BASE
        given = call.experts if not is_base else () if call.base is None else (call.base,)
        found: list[MeasuredStatistics | None] = []
        for name in map(sole_name, given):
            if name is None:
                found.append(None)
                continue
            files, label = self.of.measured.get(name, ()), self.of.views[name].label
            found.append(chosen(spec, files, label, WHERE))
        return found

    def _statistics(
        self, spec: Weighing, call: Call, files: Sequence[MeasuredStatistics | None]
    ) -> tuple[MeasuredLeaves, ...]:
        if not spec.statistics or METRICS in spec.statistics or None in files:
            return ()
        names = [sole_name(expert) for expert in call.experts]
        if spec.measured_on is not MeasuredOn.EXPERTS:
            names = [None if call.base is None else sole_name(call.base)] * len(files)
        if None in names:
            return ()
        owners = [(self.of.views[n], self.items[n]) for n in names if n is not None]
        problems = self.of.combiner.problems
        return stored_statistics(spec, files, owners, self.of.tensor, problems) or ()

    def _label(self, expert: Combination) -> str:
        ((_, atom),) = expert.terms if len(expert.terms) == 1 else ((1.0, None),)
        return self.of.views[atom.name].label if isinstance(atom, Name) else "expression"
