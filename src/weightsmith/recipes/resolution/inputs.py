"""The models of a recipe and their statistics: each opened once and labelled; a chain of views begins here."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from weightsmith.adapters import Reference, called
from weightsmith.checkpoints import (
    Checkpoint,
    Statistics,
    Tying,
    compare_configurations,
    is_of,
    require_match,
    require_names,
    statistics_of,
    tie_findings,
)
from weightsmith.errors import RecipeError
from weightsmith.findings import Finding, Severity
from weightsmith.recipes.language.free_forms import FreeMask, MaskForm
from weightsmith.recipes.language.problems import Problems
from weightsmith.recipes.resolution.combine import rounded
from weightsmith.recipes.resolution.formula import Formula, Leaf, OutputTensor, Same
from weightsmith.recipes.resolution.input_chain import Sources, Transform, TransformedViews
from weightsmith.recipes.resolution.masks import mask_statistics
from weightsmith.recipes.resolution.measured_statistics import MeasuredStatistics
from weightsmith.recipes.resolution.output_sections import Labels
from weightsmith.recipes.resolution.postprocess import as_written
from weightsmith.recipes.resolution.result import RecipeResult
from weightsmith.recipes.resolution.views import View, view_of
from weightsmith.tensors import DType
from weightsmith.wording import shown


class Inputs:
    """Checkpoints as they are opened, statistics, and results of recipes inside the recipe, each under its label."""

    def __init__(self, opener: Callable[[Reference], Checkpoint]) -> None:
        self.problems = Problems()
        self.sources = Sources()
        self.statistics: dict[tuple[Reference | str, str, str], MeasuredStatistics] = {}
        self.recipe_views: dict[Hashable, View] = {}
        self._opener = opener
        self._found: dict[Reference, Checkpoint] = {}
        self._opened: dict[Reference, View] = {}
        self._as_opened: dict[str, Checkpoint] = {}
        self._labels = Labels()
        self._recipe_labels = Labels()

    @property
    def checkpoints(self) -> Mapping[str, Checkpoint]:
        """What leaves of formulas are looked up in, by label."""
        return self.sources.checkpoints

    def checkpoint(self, reference: Reference) -> Checkpoint:
        """The checkpoint that a recipe calls `reference`, which has no label before it is viewed."""
        if reference not in self._found:
            self._found[reference] = called(self._opener(reference), reference)
        return self._found[reference]

    def view(self, reference: Reference) -> View:
        """The checkpoint that a recipe calls `reference`, as it is opened: with its adapters and nothing else done."""
        if reference not in self._opened:
            checkpoint = self.checkpoint(reference)
            # Labels name the streams of random masks, so they follow the recipe, not the place of a moved input.
            label = self._labels.new(_short_name(checkpoint))
            for finding in checkpoint.findings():
                self.problems.add(finding)
            self._as_opened[label] = checkpoint
            self._opened[reference] = view_of(checkpoint, label)
            self.sources.add(label, checkpoint)
        return self._opened[reference]

    def then(self, transform: Transform) -> TransformedViews:
        """The chain that begins with the checkpoints as they are opened."""
        return TransformedViews(self, transform, self.sources)

    def measured(
        self, reference: Reference | MaskForm, view: View, base: View | None = None
    ) -> MeasuredStatistics:
        """The statistics file that a recipe names at `view`: it must be of that checkpoint, or of the base; or a mask.

        Raises RecipeError for statistics of a recipe's result, and CompatibilityError for those of other weights or
        of tensors that it lacks.
        """
        if not isinstance(reference, Reference):
            return self._mask(reference, view)
        key = (reference, view.label, "" if base is None else base.label)
        if key not in self.statistics:
            found = statistics_of(called(self._opener(reference), reference))
            own = self._is_of(found, view)
            of_base = own if base is view else not own and self._is_of(found, base)
            if not own and not of_base:
                self._require_own(reference, found, view)
            owner = self._as_opened[base.label if of_base and base is not None else view.label]
            require_names(found, owner)
            from weightsmith.checkpoints import by_weight

            found = by_weight(found, owner)
            label = self._labels.new(Path(str(reference)).name)
            self.sources.add(label, found.checkpoint)
            self.statistics[key] = MeasuredStatistics(label, found, own, of_base)
        return self.statistics[key]

    def _mask(self, form: MaskForm, view: View) -> MeasuredStatistics:
        """A mask that stands in the recipe; a free one is what leaves read under its name."""
        name = form.name if isinstance(form, FreeMask) else f"mask {form.mask:g} of {view.label}"
        if view.is_recipe or view.label not in self._as_opened:
            raise RecipeError(
                f"The {name!r} is given for {view.label!r}, which a recipe makes; merge it first and mask the result."
            )
        if not isinstance(form, FreeMask):
            return mask_statistics(form, self._as_opened[view.label], name)
        if (name, "", "") not in self.statistics:
            made = mask_statistics(form, self._as_opened[view.label], name)
            self.sources.add(name, made.statistics.checkpoint)
            self.statistics[name, "", ""] = made
        return self.statistics[name, "", ""]

    def _require_own(self, reference: Reference, found: Statistics, view: View) -> None:
        if view.is_recipe or view.label not in self._as_opened:
            raise RecipeError(
                f"The statistics {str(reference)!r} are given for {view.label!r}, which a recipe makes; merge it first "
                "and collect statistics of the result."
            )
        require_match(found, self._as_opened[view.label])

    def _is_of(self, found: Statistics, view: View | None) -> bool:
        opened = None if view is None else self._as_opened.get(view.label)
        return opened is not None and is_of(found, opened)

    def recipe_view(self, key: Hashable, name: str, result: Callable[[str], RecipeResult]) -> View:
        """The result of a recipe inside a recipe; `result` resolves it, given its label.

        Where the inner recipe names a dtype, and always in mergekit's semantics, its values are
        rounded as if they had been written and read again.
        """
        if key not in self.recipe_views:
            label = self._recipe_labels.new(name)
            made = result(label)
            is_rounded = made.scope.semantics == "mergekit" or made.output_dtype is not None
            items = {
                item.name: replace(item, formula=self._as_stored(item)) if is_rounded else item
                for item in as_written(made)
            }
            config_source = made.config_source
            self.recipe_views[key] = View(
                label,
                items,
                config_source.checkpoint,
                config_source.config_label,
                config_source.ties,
                is_recipe=True,
            )
        return self.recipe_views[key]

    def check_ties(self, views: Sequence[View]) -> None:
        """Note every checkpoint whose head is tied where others keep a head of their own."""
        distinct = {id(v.checkpoint): v.checkpoint for v in views}
        tied = [v for v in views if v.is_recipe and v.checkpoint.tying is Tying.TIED]
        recipes = {view.checkpoint.identity: view.label for view in tied}
        for finding in tie_findings(list(distinct.values())):
            label = recipes.get(finding.subject)
            self.problems.add(
                finding if label is None else replace(finding, fix=_merge_first(label))
            )

    def check_configurations(
        self,
        config_source: View,
        views: Sequence[View],
        accepted: Sequence[str],
        *,
        is_partial: bool,
    ) -> None:
        """Note every checkpoint whose configuration computes otherwise than the config source's, the result's."""
        others = {id(view.checkpoint): view.checkpoint for view in views}
        found = compare_configurations(
            config_source.checkpoint,
            list(others.values()),
            accepted=accepted,
            is_partial=is_partial,
        )
        for finding in found.findings:
            self.problems.add(finding)
        for name in accepted:
            if name not in found.accepted:
                self.problems.add(
                    Finding(
                        Severity.WARNING,
                        "idle-accept",
                        name,
                        f"accept: the configurations do not differ in {shown(name)}",
                        "correct the key, or leave it out",
                    )
                )

    def _as_stored(self, item: OutputTensor) -> Formula:
        formula = item.formula
        if not item.dtype.is_float or isinstance(formula, Same):
            return formula
        if isinstance(formula, Leaf):
            stored = self.checkpoints[formula.checkpoint].tensors[formula.tensor].dtype
            return rounded(formula, stored, item.dtype)
        return rounded(formula, DType.FLOAT64, item.dtype)


def _short_name(checkpoint: Checkpoint) -> str:
    """The Hub id or the last component of what the recipe calls a checkpoint, with its adapters' names behind `+`."""
    name = checkpoint.hub_id or Path(checkpoint.base_source or checkpoint.source).name
    return "+".join([name, *(a.name for a in checkpoint.attached)]) if name else checkpoint.name


def _merge_first(label: str) -> str:
    return (
        f"merge the inner recipe {label!r} on its own first and name the folder it gives in its place, with "
        "`untie: true` (which does not reach results of recipes), or leave one of the two out"
    )
