"""A section: a run of output tensors that are made from the same sources by the same method.

`models:` gives one section, `slices:` one per slice. A `MethodPlan` is what a section, or a rule in it, does
with a tensor: a method with lookups for its parameters, or a model to copy from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from weightsmith.errors import RecipeError
from weightsmith.methods import registry
from weightsmith.recipes.language.modifier_calls import Assignments, Modification
from weightsmith.recipes.language.parameter_settings import ABSENT, Lookup, lookups
from weightsmith.recipes.language.schema import RecipeRule
from weightsmith.recipes.resolution.continuing import continues
from weightsmith.recipes.resolution.measured_statistics import (
    MeasuredStatistics,
    Weighing,
    chosen,
)
from weightsmith.recipes.resolution.modifying import ModifierUse, Steps, closest, modifier_uses
from weightsmith.recipes.resolution.views import View
from weightsmith.tensors import Place

Level = Mapping[str, Any]
# The parameters of the method and of each expert at one tensor, and the modifiers.
Given = tuple[Assignments, tuple[Assignments, ...], tuple[Modification, ...]]


@dataclass(frozen=True, slots=True)
class SectionSource:
    """One input of a section: a view, the first layer that is taken (slices), its own parameters and statistics.

    `is_implicit` marks a base that the recipe does not list among the sources.
    """

    view: View
    start: int = 0
    parameters: Level = field(default_factory=dict)
    is_implicit: bool = False
    statistics: tuple[MeasuredStatistics, ...] = ()


@dataclass(frozen=True, slots=True)
class MergeSection:
    """Sources, base, method, modifiers and levels of parameters (closest first) of a run of output tensors."""

    where: str
    scope: str
    sources: tuple[SectionSource, ...]
    base: View | None
    method: str
    preset: str
    levels: tuple[Level, ...]
    modify: Steps = ()

    @property
    def views(self) -> tuple[View, ...]:
        """All that it reads: the sources', and the base where it is none of them."""
        base = () if self.base is None or self.base_index is not None else (self.base,)
        return (*(source.view for source in self.sources), *base)

    @property
    def base_index(self) -> int | None:
        """The position of the base among the sources."""
        return next((i for i, s in enumerate(self.sources) if s.view is self.base), None)


@dataclass(frozen=True, slots=True)
class MethodPlan:
    """What is done with a tensor: `experts` are positions among the section's sources.

    `has_origin`: modifiers measure task vectors from the base. `is_even`: its parameters depend on a tensor's depth
    alone, not on its name or place. `statistics` has the file of each expert, or that of the base, and
    `modifier_statistics` the like for each modifier.
    """

    spec: registry.MethodSpec
    preset: str
    scope: str
    uses_base: bool
    experts: tuple[int, ...]
    labels: tuple[str, ...]
    shared: tuple[Lookup, ...]
    per_expert: tuple[tuple[Lookup, ...], ...]
    required: tuple[str, ...]
    required_per_expert: tuple[str, ...]
    modifiers: tuple[ModifierUse, ...] = ()
    keep: View | None = None
    has_origin: bool = False
    statistics: tuple[MeasuredStatistics | None, ...] = ()
    modifier_statistics: tuple[tuple[MeasuredStatistics | None, ...], ...] = ()
    # What an even treatment gives by depth and by which of the experts have the tensor.
    known: dict[tuple[float, tuple[int, ...]], Given] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    is_even: bool = field(init=False)

    def __post_init__(self) -> None:
        every = [*self.shared, *(p for own in self.per_expert for p in own)]
        every += [p for use in self.modifiers for p in use.parameters]
        is_even = not continues(self.spec) and not any(lookup.is_by_name for lookup in every)
        object.__setattr__(self, "is_even", is_even)

    @property
    def reads_base(self) -> bool:
        """Whether the method, or a modifier, needs the base's tensor."""
        return self.uses_base or self.has_origin


def values(
    looked_up: Sequence[Lookup], filtered_name: str, place: Place
) -> tuple[tuple[str, Any], ...]:
    """The parameters that the recipe gives for one tensor."""
    found = ((lookup.parameter.key, lookup.at(filtered_name, place)) for lookup in looked_up)
    return tuple((key, value) for key, value in found if value is not ABSENT)


def treatment_of(
    section: MergeSection, rule: RecipeRule | None = None, scope: str | None = None
) -> MethodPlan:
    """The treatment of a section, or of those of its tensors that a rule selects.

    Raises RecipeError for an unknown method, a wrong number of experts or a missing base.
    """
    spec = registry.get((rule and rule.merge_method) or section.method)
    preset = (rule and rule.semantics) or section.preset
    own: tuple[Level, ...] = (rule.parameters,) if rule is not None and rule.parameters else ()
    base_index = section.base_index
    uses_base = spec.base is not registry.Base.IGNORED and section.base is not None
    _require_base(section, spec, preset)
    has_no_part = uses_base or _is_listed_for_statistics(section)
    experts = tuple(
        i
        for i, source in enumerate(section.sources)
        if not (has_no_part and i == base_index)
        and not (
            source.is_implicit and (preset != "mergekit" or spec.base is not registry.Base.IGNORED)
        )
    )
    spec.check_expert_count(len(experts), section.where)
    steps = closest(rule.modify if rule is not None else None, section.modify)
    has_base = section.base is not None
    modifiers = modifier_uses(steps, has_base=has_base, where=section.where, preset=preset)
    measures = any(use.spec.base is not registry.Base.IGNORED for use in modifiers)
    levels = (*own, *section.levels)
    defaults = spec.defaults(preset)
    required = [key for key, default in defaults.items() if default is registry.REQUIRED]
    return MethodPlan(
        spec=spec,
        preset=preset,
        scope=scope or section.scope,
        uses_base=uses_base,
        experts=experts,
        labels=distinct_labels([section.sources[i].view.label for i in experts]),
        shared=lookups(
            spec.parameters, levels, per_expert=False, where=section.where, preset=preset
        ),
        per_expert=tuple(
            lookups(
                spec.parameters,
                (*own, section.sources[i].parameters, *section.levels),
                per_expert=True,
                where=f"{section.where}, model {section.sources[i].view.label!r}",
                preset=preset,
            )
            for i in experts
        ),
        required=tuple(key for key in required if not spec.parameters[key].per_expert),
        required_per_expert=tuple(key for key in required if spec.parameters[key].per_expert),
        modifiers=modifiers,
        has_origin=measures and has_base,
        statistics=_files(spec, section, experts),
        modifier_statistics=tuple(_files(use.spec, section, experts) for use in modifiers),
    )


def _is_listed_for_statistics(section: MergeSection) -> bool:
    """Whether the base stands among the models for its statistics alone, so that it is no expert of a rule either."""
    index = section.base_index
    if index is None or registry.get(section.method).base is registry.Base.IGNORED:
        return False
    source = section.sources[index]
    return bool(source.statistics) and not source.parameters


def _files(
    spec: Weighing, section: MergeSection, experts: Sequence[int]
) -> tuple[MeasuredStatistics | None, ...]:
    """What a method or modifier takes of each expert, or of the base if it is that one's."""
    if not spec.statistics:
        return ()
    if spec.measured_on is not registry.MeasuredOn.BASE:
        return tuple(
            chosen(spec, source.statistics, source.view.label, section.where)
            for source in map(section.sources.__getitem__, experts)
        )
    given = [file for source in section.sources for file in source.statistics if file.of_base]
    label = "" if section.base is None else section.base.label
    return (chosen(spec, given, label, section.where),)


def _require_base(section: MergeSection, spec: registry.MethodSpec, preset: str) -> None:
    if spec.base is registry.Base.REQUIRED and section.base is None:
        raise RecipeError(f"{section.where}: method {spec.name} needs a base; give `base_model:`.")
    is_used = spec.base is not registry.Base.IGNORED and section.base is not None
    if preset == "mergekit" and is_used and section.base_index is None:
        label = section.base.label if section.base is not None else ""
        raise RecipeError(
            f"{section.where}: the base {label!r} is not among the sources of the slice, which "
            "mergekit requires; add it with the layer_range it has there."
        )


def distinct_labels(labels: Sequence[str]) -> tuple[str, ...]:
    """Labels made distinct: a model that is used again gets `#2`, `#3`..."""
    made = Labels()
    return tuple(map(made.new, labels))


class Labels:
    """Labels that are given out, each once."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._counts: dict[str, int] = {}

    def new(self, label: str) -> str:
        """A label that is not taken: itself, or itself with the first free `#2`, `#3`..."""
        made = label
        while made in self._taken:
            self._counts[label] = self._counts.get(label, 1) + 1
            made = f"{label}#{self._counts[label]}"
        self._taken.add(made)
        return made


def are_alike(section: MergeSection, other: MergeSection) -> bool:
    """Whether two slices merge the same models in the same way, so that they are one merge of the recipe."""

    def identity(one: MergeSection) -> tuple[object, ...]:
        labels = tuple(source.view.label for source in one.sources)
        return labels, one.base and one.base.label, one.method, one.preset, repr(one.modify)

    return identity(section) == identity(other)
