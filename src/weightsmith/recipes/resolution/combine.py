"""One output tensor: which tensors of the sources go into it, and the formula that they give."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from weightsmith.findings import Severity
from weightsmith.methods import METRICS, MeasuredOn
from weightsmith.recipes.language.modifier_calls import Assignments
from weightsmith.recipes.language.problems import Problems
from weightsmith.recipes.resolution.continuing import with_previous_state
from weightsmith.recipes.resolution.formula import (
    Cast,
    Formula,
    Leaf,
    MeasuredLeaves,
    Merge,
    OutputTensor,
    Same,
    distinct_leaves,
)
from weightsmith.recipes.resolution.measured_statistics import (
    MeasuredStatistics,
    Weighing,
    stored_statistics,
    with_metric,
)
from weightsmith.recipes.resolution.output_sections import Given, MergeSection, MethodPlan, values
from weightsmith.recipes.resolution.views import View
from weightsmith.tensors import DType, Kind, Place, promote

_NARROW = {
    DType.FLOAT8_E4M3FN: frozenset({DType.FLOAT8_E4M3FN, DType.FLOAT16, DType.BFLOAT16}),
    DType.FLOAT8_E5M2: frozenset({DType.FLOAT8_E5M2, DType.FLOAT16, DType.BFLOAT16}),
    DType.FLOAT16: frozenset({DType.FLOAT16}),
    DType.BFLOAT16: frozenset({DType.BFLOAT16}),
    DType.FLOAT32: frozenset[DType](),
    DType.FLOAT64: frozenset[DType](),
}
_VOCABULARY = (Kind.EMBEDDING, Kind.HEAD)


def keeps_values(stored: DType, wanted: DType) -> bool:
    """Whether every number of one float type is a number of another."""
    if wanted is DType.FLOAT64 or stored is wanted:
        return True
    if wanted is DType.FLOAT32:
        return stored is not DType.FLOAT64
    return wanted in _NARROW.get(stored, frozenset())


@functools.lru_cache(maxsize=1 << 10)
def coarsest(dtypes: tuple[DType, ...]) -> DType:
    """The float type with the fewest significant digits."""
    return min(dtypes, key=lambda dtype: dtype.significant_bits, default=DType.FLOAT32)


def stored_dtype(item: OutputTensor, view: View) -> DType:
    """The dtype that a tensor's values were last rounded to: what it counts as may be narrower than what is read."""
    leaf = item.formula
    if isinstance(leaf, Leaf) and leaf.checkpoint == view.label and not view.is_recipe:
        return view.checkpoint.tensors[leaf.tensor].dtype
    return item.dtype


def rounded(formula: Formula, stored: DType, wanted: DType | None) -> Formula:
    """A formula whose values are rounded to `wanted`, where that changes them."""
    if wanted is None or not stored.is_float or keeps_values(stored, wanted):
        return formula
    return Cast(wanted, formula)


@dataclass(slots=True)
class Combiner:
    """Makes formulas under the recipe's policies and notes what does not fit.

    `input_dtype` is what inputs are rounded to before merging (mergekit's `dtype`), `output_dtype` what results are
    stored in, each None for "as they are"; `seed` is that of random masks.
    """

    problems: Problems
    missing: str
    input_dtype: DType | None
    output_dtype: DType | None
    seed: int
    # Whether a statistics file that a method goes by, by its label, is of any tensor that was merged.
    uses: dict[str, bool] = field(default_factory=dict)

    def combine(
        self,
        section: MergeSection,
        treatment: MethodPlan,
        items: Sequence[OutputTensor | None],
        base: OutputTensor | None,
        place: Place,
    ) -> OutputTensor | None:
        """The output tensor made from the sources' `items` (None where a source lacks it), or None with a finding."""
        if treatment.keep is not None:
            return self._kept(treatment.keep, section, items, place)
        experts = self._present(section, treatment, items, base, place.name)
        if experts is None:
            return None
        if not experts:
            return self.copied(base, base, place) if base is not None else None
        used = [item for _, item in experts]
        if treatment.reads_base and base is not None:
            used.insert(0, base)
        if not self.fits(section.where, used, place.name):
            return None
        first = base if base is not None else experts[0][1]
        if not first.dtype.is_float:
            return self.exact(base, [item for _, item in experts], place)
        # A base whose weights take no part gives the shape, the configuration and the tokenizer all the same.
        if first is not used[0] and not self.fits(section.where, [first, used[0]], place.name):
            return None
        if len(experts) < len(treatment.experts) and not _enough(treatment, len(experts)):
            return self.copied(experts[0][1], first, place)
        formula = self._merged(section, treatment, experts, base, place)
        if formula is None:
            return None
        return output_tensor(place, first, formula, self.stored(used))

    def _merged(
        self,
        section: MergeSection,
        treatment: MethodPlan,
        experts: Sequence[tuple[int, OutputTensor]],
        base: OutputTensor | None,
        place: Place,
    ) -> Formula | None:
        shared, per_expert, modifiers = self._given(section, treatment, experts, place)
        if not self._complete(section, treatment, shared, per_expert, experts, place.name):
            return None
        views = [section.sources[treatment.experts[i]].view for i, _ in experts]
        items = [item for _, item in experts]
        owners = list(zip(views, items, strict=True))
        at = [i for i, _ in experts]
        of_base = (section.base, base)
        statistics = self._measured(
            treatment.spec, treatment.statistics, at, owners, of_base, place.name
        )
        of_modifiers = [
            self._measured(use.spec, files, at, owners, of_base, place.name)
            for use, files in zip(treatment.modifiers, treatment.modifier_statistics, strict=True)
        ]
        if statistics is None or None in of_modifiers:
            return None
        is_copy = treatment.spec.name == "passthrough" and _is_plain(shared, per_expert[0])
        if is_copy and not modifiers:
            return self.cast(items[0])
        like = base if base is not None else items[0]
        return Merge(
            method=treatment.spec.name,
            preset=treatment.preset,
            shared=shared,
            base=self.cast(base) if treatment.uses_base and base is not None else None,
            experts=tuple([self.cast(item) for item in items]),
            per_expert=per_expert,
            labels=tuple([treatment.labels[i] for i, _ in experts]),
            scope_id=treatment.scope,
            place=placed_like(place, like),
            shape=like.shape,
            seed=self.seed,
            modifiers=modifiers,
            origin=self.cast(base) if treatment.has_origin and base is not None else None,
            statistics=statistics,
            modifier_statistics=tuple(own for own in of_modifiers if own is not None),
            stored=coarsest(tuple(map(stored_dtype, items, views))),
        )

    def _measured(
        self,
        spec: Weighing,
        files: Sequence[MeasuredStatistics | None],
        at: Sequence[int],
        experts: Sequence[tuple[View, OutputTensor]],
        base: tuple[View | None, OutputTensor | None],
        name: str,
    ) -> tuple[MeasuredLeaves, ...] | None:
        """What was measured at one tensor for a method or modifier; `at` are the experts that have the tensor."""
        if not spec.statistics:
            return ()
        if spec.measured_on is MeasuredOn.EXPERTS:
            return self.statistics(spec, [files[i] for i in at], experts, name)
        view, item = base
        if view is None or item is None:
            return ()
        own = files if spec.measured_on is MeasuredOn.BASE else [files[i] for i in at]
        return self.statistics(spec, own, [(view, item)] * len(own), name)

    def statistics(
        self,
        spec: Weighing,
        files: Sequence[MeasuredStatistics | None],
        owners: Sequence[tuple[View, OutputTensor]],
        name: str,
    ) -> tuple[MeasuredLeaves, ...] | None:
        """What was measured at one tensor, noting whose files are of any; see `stored_statistics`."""
        found = stored_statistics(spec, files, owners, name, self.problems)
        for file in files:
            if file is not None and file.kind != METRICS:
                self.uses[file.label] = self.uses.get(file.label, False) or found != ()
        return found

    def _given(
        self,
        section: MergeSection,
        treatment: MethodPlan,
        experts: Sequence[tuple[int, OutputTensor]],
        place: Place,
    ) -> Given:
        """The parameters of one tensor; tensors that differ in nothing that they depend on share them."""
        key = (place.depth, tuple([i for i, _ in experts]))
        known = treatment.known.get(key) if treatment.is_even else None
        if known is not None:
            return known
        shared = values(treatment.shared, place.name, place)
        position, item = experts[0]
        shared = with_previous_state(
            treatment.spec,
            treatment.preset,
            shared,
            section.sources[treatment.experts[0]].view,
            item if position == 0 else None,
        )
        per_expert = tuple(
            with_metric(
                treatment.spec,
                values(treatment.per_expert[i], item.name, place),
                shared,
                treatment.statistics[i] if METRICS in treatment.spec.statistics else None,
                section.where,
            )
            for i, item in experts
        )
        modifiers = tuple(use.at(place) for use in treatment.modifiers)
        treatment.known[key] = (shared, per_expert, modifiers)
        return shared, per_expert, modifiers

    def cast(self, item: OutputTensor) -> Formula:
        """A tensor as it goes into a merge."""
        return rounded(item.formula, item.dtype, self.input_dtype)

    def stored(self, used: Sequence[OutputTensor]) -> DType:
        """The dtype of what is made of `used`."""
        if self.output_dtype is not None:
            return self.output_dtype
        return promote([item.dtype for item in used])

    def _complete(
        self,
        section: MergeSection,
        treatment: MethodPlan,
        shared: Assignments,
        per_expert: Sequence[Assignments],
        experts: Sequence[tuple[int, OutputTensor]],
        name: str,
    ) -> bool:
        """Whether every required parameter has a value."""
        if not treatment.required and not treatment.required_per_expert:
            return True
        lacking = [(key, "") for key in treatment.required if key not in dict(shared)]
        if treatment.required_per_expert:
            lacking += [
                (key, f" for model {treatment.labels[i]!r}")
                for (i, _), given in zip(experts, per_expert, strict=True)
                for key in treatment.required_per_expert
                if key not in dict(given)
            ]
        for key, whom in lacking:
            self.problems.error(
                name,
                "missing-parameter",
                key,
                f"{section.where}: method {treatment.spec.name} needs the parameter {key!r}{whom}",
                "give it under the model's or the recipe's `parameters:`; where conditions give it, end them with one "
                "without filter",
            )
        return not lacking

    def _present(
        self,
        section: MergeSection,
        treatment: MethodPlan,
        items: Sequence[OutputTensor | None],
        base: OutputTensor | None,
        name: str,
    ) -> list[tuple[int, OutputTensor]] | None:
        """(position among the experts, tensor) of those that have it; None where the recipe's policy is to stop."""
        if treatment.reads_base and base is None:
            label = section.base.label if section.base is not None else "base"
            self.problems.error(
                name,
                "missing-tensor",
                label,
                f"The base {label!r} lacks tensors that others have",
                self._missing_fix(True),
            )
            return None
        present: list[tuple[int, OutputTensor]] = []
        for i, source in enumerate(treatment.experts):
            item = items[source]
            if item is None and self.missing == "base":
                item = base
            if item is not None:
                present.append((i, item))
            elif self.missing != "skip":
                label = section.sources[source].view.label
                self.problems.error(
                    name,
                    "missing-tensor",
                    label,
                    f"Model {label!r} lacks tensors that others have",
                    self._missing_fix(base is None),
                )
                return None
        return present

    def _missing_fix(self, without_base: bool) -> str:
        if without_base:
            return "merge checkpoints of one architecture, or set `missing: skip`"
        return "merge checkpoints of one architecture, or set `missing: base` or `missing: skip`"

    def fits(self, where: str, used: Sequence[OutputTensor], name: str) -> bool:
        """Whether tensors that are combined have one shape; notes an error otherwise."""
        first = used[0]
        for other in used:
            if other.shape != first.shape or other.dtype.is_float != first.dtype.is_float:
                break
        else:
            return True
        labels = {id(item): _origin(item) for item in used}
        mine, theirs = labels[id(first)], labels[id(other)]
        if other.shape == first.shape:
            self.problems.error(
                name,
                "dtype-mismatch",
                theirs,
                f"{where}: tensors are {first.dtype} in {mine!r} but {other.dtype} in {theirs!r}",
                "convert one of the two",
            )
        elif first.place.kind in _VOCABULARY and first.shape[1:] == other.shape[1:]:
            self.problems.error(
                name,
                "vocabulary-mismatch",
                theirs,
                f"{where}: the vocabulary has {first.shape[0]} entries in {mine!r} but {other.shape[0]} in {theirs!r}",
                "align them with `tokenizer: {source: union}` or `base`, or keep these tensors from one model with "
                "`rules: [{match: {role: [embedding, head]}, keep: MODEL}]`",
            )
        else:
            self.problems.error(
                name,
                "shape-mismatch",
                theirs,
                f"{where}: tensors have other shapes in {theirs!r} than in {mine!r} "
                f"({list(other.shape)} instead of {list(first.shape)})",
                "merge checkpoints of one architecture, or keep these tensors from one model with "
                "`rules: [{match: ..., keep: MODEL}]`",
            )
        return False

    def exact(
        self, base: OutputTensor | None, experts: Sequence[OutputTensor], place: Place
    ) -> OutputTensor:
        """Integers and bools: the base's, or what all agree on."""
        if base is not None:
            if any(item.dtype != base.dtype or item.shape != base.shape for item in experts):
                self.problems.about(
                    place.name,
                    Severity.WARNING,
                    "buffer-differs",
                    _origin(base),
                    "Integer tensors differ in dtype or shape between the models; the base's are copied",
                    "",
                )
            return output_tensor(place, base, base.formula, base.dtype)
        first = experts[0]
        if any(item.dtype != first.dtype for item in experts):
            self.problems.error(
                place.name,
                "dtype-mismatch",
                _origin(first),
                "Integer tensors have different dtypes",
                "name a base_model to copy them from, or keep them from one model with "
                "`rules: [{match: ..., keep: MODEL}]`",
            )
        leaves = tuple(
            dict.fromkeys(leaf for item in experts for leaf in distinct_leaves(item.formula))
        )
        return output_tensor(
            place, first, Same(leaves) if len(leaves) > 1 else first.formula, first.dtype
        )

    def _kept(
        self,
        view: View,
        section: MergeSection,
        items: Sequence[OutputTensor | None],
        place: Place,
    ) -> OutputTensor | None:
        item = next(
            (
                i
                for s, i in zip(section.sources, items, strict=True)
                if s.view.label == view.label and i is not None
            ),
            None,
        )
        if item is None:
            first = next((i for i in items if i is not None), None)
            item = view.items.get(first.name) if first is not None else None
        if item is None:
            self.problems.error(
                place.name,
                "missing-tensor",
                view.label,
                f"A rule keeps tensors of {view.label!r}, which has none of their names",
                "correct the rule's match or its `keep:`",
            )
            return None
        return self.copied(item, item, place)

    def copied(self, item: OutputTensor, like: OutputTensor, place: Place) -> OutputTensor:
        """A tensor as it is, in the dtype of the result."""
        formula = self.cast(item) if self.output_dtype is not self.input_dtype else item.formula
        dtype = item.dtype if not item.dtype.is_float else self.stored([item])
        return output_tensor(place, like, formula, dtype)


def placed_like(place: Place, like: OutputTensor) -> Place:
    """A place of the result whose tensor is stored as one of its inputs is."""
    input_first = like.place.input_first
    return place if place.input_first is input_first else replace(place, input_first=input_first)


def output_tensor(place: Place, like: OutputTensor, formula: Formula, dtype: DType) -> OutputTensor:
    """The output tensor at a place, shaped like one of its inputs."""
    return OutputTensor(placed_like(place, like), formula, dtype, like.shape)


def _enough(treatment: MethodPlan, count: int) -> bool:
    return count >= treatment.spec.experts[0]


def _is_plain(shared: Assignments, own: Assignments) -> bool:
    """Whether passthrough copies its input: no scale, or one of exactly 1."""
    return all(value is None or value == 1.0 for _, value in (*shared, *own))


def _origin(item: OutputTensor) -> str:
    """The label of the checkpoint that a tensor comes from, for messages."""
    formula = item.formula
    while isinstance(formula, (Cast, Merge)):
        formula = formula.inner if isinstance(formula, Cast) else formula.experts[0]
    if isinstance(formula, Leaf):
        return formula.checkpoint
    return formula.leaves[0].checkpoint if isinstance(formula, Same) else "an expression"
