"""The models of a recipe: each opened once, labelled, and untied where the recipe asks for it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from weightsmith.adapters import base_of, reference_of
from weightsmith.checkpoints import (
    Checkpoint,
    Tying,
    require_match,
    require_names,
    statistics_of,
    tie_findings,
    untied,
    vocabulary_head,
)
from weightsmith.errors import RecipeError
from weightsmith.recipes.language.problems import Problems
from weightsmith.recipes.resolution.combine import rounded
from weightsmith.recipes.resolution.formula import Formula, Leaf, OutputTensor, Same
from weightsmith.recipes.resolution.measured_statistics import MeasuredStatistics
from weightsmith.recipes.resolution.output_sections import Labels
from weightsmith.recipes.resolution.postprocess import as_written
from weightsmith.recipes.resolution.result import RecipeResult
from weightsmith.recipes.resolution.views import View, view_of
from weightsmith.tensors import DType, LazyTensor


class Inputs:
    """Checkpoints by label, and every model of a recipe as a view."""

    def __init__(self, opener: Callable[[str], Checkpoint], *, unties: bool) -> None:
        self.checkpoints: dict[str, Checkpoint] = {}
        self.problems = Problems()
        self._opener = opener
        self._unties = unties
        self.statistics: dict[tuple[str, str], MeasuredStatistics] = {}
        self._views: dict[Hashable, View] = {}
        self._as_opened: dict[str, Checkpoint] = {}
        self._labels = Labels()
        self._recipe_labels = Labels()

    def checkpoint_view(self, reference: str) -> View:
        """The checkpoint that a recipe calls `reference`."""
        key = ("checkpoint", reference)
        if key not in self._views:
            checkpoint = replace(self._opener(reference), source=reference)
            # Labels name the streams of random masks, so they follow the recipe, not the place of a moved input.
            name = _short_name(checkpoint)
            label = self._labels.new(name)
            self.checkpoints[label] = self._as_opened[label] = checkpoint
            for finding in checkpoint.findings():
                self.problems.add(finding)
            self._views[key] = view_of(checkpoint, label)
        return self._views[key]

    def substitute(self, reference: str, tensors: Mapping[str, LazyTensor]) -> None:
        """Put other tensors in place of some of a checkpoint's, under the same names.

        For the dtype of the result they count as what they replace: a table with a few computed rows reads as float32
        and is stored as before.
        """
        view = self.checkpoint_view(reference)
        old = view.checkpoint
        checkpoint = replace(
            old,
            tensors={**old.tensors, **tensors},
            stored_as={**old.stored_as, **{name: old.dtype_of(name) for name in tensors}},
        )
        self.checkpoints[view.label] = checkpoint
        self._views["checkpoint", reference] = view_of(checkpoint, view.label)

    def measured(self, reference: str, view: View) -> MeasuredStatistics:
        """The statistics file that a recipe calls `reference`, which must be of the checkpoint that `view` shows.

        Raises RecipeError for statistics of a recipe's result, and CompatibilityError for those of other weights or
        of tensors that it lacks.
        """
        if view.is_recipe or view.label not in self._as_opened:
            raise RecipeError(
                f"The statistics {reference!r} are given for {view.label!r}, which a recipe makes; merge it first and "
                "collect statistics of the result."
            )
        key = (reference, view.label)
        if key not in self.statistics:
            found = statistics_of(replace(self._opener(reference), source=reference))
            require_match(found, self._as_opened[view.label])
            require_names(found, self._as_opened[view.label])
            label = self._labels.new(Path(reference).name)
            self.checkpoints[label] = found.checkpoint
            self.statistics[key] = MeasuredStatistics(label, found)
        return self.statistics[key]

    def recipe_view(self, key: Hashable, name: str, result: Callable[[str], RecipeResult]) -> View:
        """The result of a recipe inside a recipe; `result` resolves it, given its label.

        Where the inner recipe names a dtype, and always in mergekit's semantics, its values are
        rounded as if they had been written and read again.
        """
        key = ("recipe", key)
        if key not in self._views:
            label = self._recipe_labels.new(name)
            made = result(label)
            is_rounded = made.semantics == "mergekit" or made.output_dtype is not None
            items = {
                item.name: replace(item, formula=self._as_stored(item)) if is_rounded else item
                for item in as_written(made)
            }
            self._views[key] = View(
                label, items, made.donor.checkpoint, made.donor.ties, is_recipe=True
            )
        return self._views[key]

    @property
    def recipe_views(self) -> list[View]:
        """The results of recipes inside the recipe."""
        return [view for view in self._views.values() if view.is_recipe]

    def label_of(self, view: View) -> str:
        """The label of the checkpoint that a view's configuration comes from."""
        wanted = view.checkpoint
        # Untying replaces a checkpoint under its label; a view made before still has the old one.
        return next(
            label
            for label, checkpoint in self.checkpoints.items()
            if checkpoint is wanted
            or (checkpoint.path, checkpoint.source) == (wanted.path, wanted.source)
        )

    def untie(self, views: Sequence[View]) -> bool:
        """Give tied checkpoints a head of their own if the recipe asks for it and another of `views` has one.

        Returns whether views have changed and must be asked for again.
        """
        heads = [
            vocabulary_head(v.checkpoint.tensors, v.checkpoint.roles)
            for v in views
            if v.checkpoint.tying is Tying.UNTIED
        ]
        if not self._unties or not heads or heads[0] is None:
            return False
        wanted = {id(view) for view in views}
        changed = False
        for key, view in list(self._views.items()):
            is_tied = view.checkpoint.tying is Tying.TIED
            if id(view) in wanted and is_tied and not view.is_recipe:
                checkpoint = untied(view.checkpoint, heads[0])
                self.checkpoints[view.label] = checkpoint
                self._views[key] = view_of(checkpoint, view.label)
                changed = True
        return changed

    def check_ties(self, views: Sequence[View]) -> None:
        """Note every checkpoint whose head is tied where others keep a head of their own.

        A recipe's result is not untied: a second head would count twice in statistics over its whole model,
        and draw random masks of its own.
        """
        distinct = {id(v.checkpoint): v.checkpoint for v in views}
        recipes = {v.checkpoint.identity: v.label for v in views if v.is_recipe}
        for finding in tie_findings(list(distinct.values())):
            label = recipes.get(finding.subject)
            self.problems.add(
                finding if label is None else replace(finding, fix=_merge_first(label))
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
    adapters = checkpoint.attached
    base = base_of(checkpoint.source, map(reference_of, adapters))
    name = checkpoint.hub_id or Path(base).name
    return "+".join([name, *(adapter.name for adapter in adapters)]) if name else checkpoint.name


def _merge_first(label: str) -> str:
    return (
        f"merge the inner recipe {label!r} on its own first and name the folder it gives in its place, with "
        "`untie: true` (which does not reach results of recipes), or leave one of the two out"
    )
