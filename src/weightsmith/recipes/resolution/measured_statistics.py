"""`statistics:` of a model: files of what was measured on it earlier, and what of them goes into a tensor's formula."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from weightsmith.checkpoints import Statistics, misfit
from weightsmith.errors import RecipeError
from weightsmith.methods import METRICS, MeasuredOn, MethodSpec
from weightsmith.recipes.language.modifier_calls import Assignments
from weightsmith.recipes.language.problems import Problems
from weightsmith.recipes.resolution.formula import Cast, Leaf, MeasuredLeaves, OutputTensor
from weightsmith.recipes.resolution.views import View
from weightsmith.tensors import ConstantTensor


class Weighing(Protocol):
    """A method or a modifier, as far as it goes by statistics."""

    @property
    def name(self) -> str: ...
    @property
    def noun(self) -> str: ...
    @property
    def statistics(self) -> tuple[str, ...]: ...
    @property
    def measured_on(self) -> MeasuredOn: ...


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredStatistics:
    """A statistics file that a recipe names at a model, under the label of its tensors.

    It is of that model's weights, of those of the base, or of both where they are the same. Of a weight it is read what
    it has under `word`, if that is not empty.
    """

    label: str
    statistics: Statistics
    of_model: bool = True
    of_base: bool = False
    word: str = ""

    @property
    def kind(self) -> str:
        """What the file holds."""
        return self.statistics.header.kind


# Where the recipe names them, and what they are of besides the model itself.
_PLACES = {
    MeasuredOn.EXPERTS: ("", "name their file under the model's `statistics:`"),
    MeasuredOn.BASE: (
        " of the base",
        "list the base among the models, with their file under its `statistics:`",
    ),
    MeasuredOn.BASE_BY_EXPERT: (
        " of the base over the model's data",
        "collect them from the base, and name their file under the model's `statistics:`",
    ),
}


def chosen(
    spec: Weighing, files: Sequence[MeasuredStatistics], model: str, where: str
) -> MeasuredStatistics | None:
    """The file that a method or modifier takes: of the kind that it prefers among those of the weights it goes by.

    Raises RecipeError where it needs one and none of its kinds is given. Metrics may stand in the recipe instead.
    """
    is_of_base = spec.measured_on is not MeasuredOn.EXPERTS
    for wanted in spec.statistics:
        kind, _, word = wanted.partition(":")
        fitting = (f for f in files if f.kind == kind)
        # One mask, of the base's weights, may be that of several models.
        is_any = kind == "mask"
        found = next(
            (f for f in fitting if is_any or (f.of_base if is_of_base else f.of_model)), None
        )
        if found is not None:
            return replace(found, word=word)
    if not spec.statistics or METRICS in spec.statistics:
        return None
    kinds = " or ".join(wanted.partition(":")[0] for wanted in spec.statistics)
    given = ", ".join(f"{file.kind}{'' if file.of_model else ' of the base'}" for file in files)
    whose, advice = _PLACES[spec.measured_on]
    raise RecipeError(
        f"{where}, model {model!r}: {spec.noun} {spec.name} needs statistics of kind {kinds}{whose}, "
        + (f"but {given} is given; " if given else "and none are given; ")
        + f"{advice}."
    )


def with_metric(
    spec: MethodSpec,
    given: Assignments,
    shared: Assignments,
    file: MeasuredStatistics | None,
    where: str,
) -> Assignments:
    """A model's parameters with its `metric` from a metrics file, unless the recipe gives one.

    Raises RecipeError where the file lacks the metric that the method goes by.
    """
    if METRICS not in spec.statistics or file is None or "metric" in dict(given):
        return given
    by = str(dict(shared).get("by", spec.defaults()["by"]))
    metrics = file.statistics.header.metrics
    if by not in metrics:
        known = ", ".join(metrics) or "none"
        raise RecipeError(
            f"{where}: {file.statistics.checkpoint.identity} has no metric {by!r} (it has {known}); "
            "set `by:`, or give the number as the model's `metric`."
        )
    return (*given, ("metric", float(metrics[by])))


def stored_statistics(
    spec: Weighing,
    files: Sequence[MeasuredStatistics | None],
    experts: Sequence[tuple[View, OutputTensor]],
    name: str,
    problems: Problems,
) -> tuple[MeasuredLeaves, ...] | None:
    """What the files hold of one tensor, expert by expert; () where they all have nothing of it.

    `experts` are whose weights the files are of, in their order. None, with a finding, where only some have it or
    where a shape does not fit.
    """
    if METRICS in spec.statistics or not spec.statistics:
        return ()
    found = [
        _stored(file, view, item) if file is not None else None
        for file, (view, item) in zip(files, experts, strict=True)
    ]
    lacking = next((i for i, one in enumerate(found) if one is None), None)
    if all(one is None for one in found):
        return ()
    if lacking is not None:
        without = files[lacking]
        assert without is not None
        problems.error(
            name,
            "missing-statistics",
            experts[lacking][0].label,
            f"The statistics {without.label!r} lack tensors that those of others have",
            "collect them again over the same tensors for every model",
        )
        return None
    for file, one, (view, item) in zip(files, found, experts, strict=True):
        assert file is not None
        assert one is not None
        tensors = [file.statistics.checkpoint.tensors[leaf.tensor] for leaf in one.leaves]
        wrong = misfit(item.shape, [tensor.shape for tensor in tensors] or [one.shape], one.kind)
        if wrong:
            problems.error(
                name,
                "statistics-shape",
                view.label,
                f"{tensors[0].location if tensors else file.label} {wrong}",
                "collect the statistics of this checkpoint again",
            )
            return None
    return tuple(one for one in found if one is not None)


def _stored(file: MeasuredStatistics, view: View, item: OutputTensor) -> MeasuredLeaves | None:
    formula = item.formula
    while isinstance(formula, Cast):
        formula = formula.inner
    if not isinstance(formula, Leaf) or formula.checkpoint != view.label:
        return None
    tied = next((group for group in view.ties if item.name in group), frozenset())
    own_names = view.checkpoint.own_names
    for name in (formula.tensor, *sorted(tied)):
        own = own_names.get(name, (name,))
        parts = file.statistics.names(own[0], file.word) if len(own) == 1 else ()
        if parts:
            first = file.statistics.checkpoint.tensors[parts[0]]
            if isinstance(first, ConstantTensor):
                return MeasuredLeaves(file.kind, (), first.shape, 1.0, constant=first.number)
            leaves = tuple(Leaf(file.label, part) for part in parts)
            divisor = file.statistics.header.divisor
            return MeasuredLeaves(file.kind, leaves, first.shape, divisor, first.dtype)
    return None
