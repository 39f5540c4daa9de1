"""`statistics:` of a model: files of what was measured on it earlier, and what of them goes into a tensor's formula."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.checkpoints import Statistics, misfit
from weightsmith.errors import RecipeError
from weightsmith.methods import METRICS, MethodSpec
from weightsmith.recipes.language.modifier_calls import Assignments
from weightsmith.recipes.language.problems import Problems
from weightsmith.recipes.resolution.formula import Cast, Leaf, MeasuredLeaves, OutputTensor
from weightsmith.recipes.resolution.views import View


@dataclass(frozen=True, slots=True, eq=False)
class MeasuredStatistics:
    """A statistics file of a model, under the label of its tensors."""

    label: str
    statistics: Statistics

    @property
    def kind(self) -> str:
        """What the file holds."""
        return self.statistics.header.kind


def chosen(
    spec: MethodSpec, files: Sequence[MeasuredStatistics], model: str, where: str
) -> MeasuredStatistics | None:
    """The file that a method takes: of the kind that it prefers among those given.

    Raises RecipeError where it needs one and none of its kinds is given. Metrics may stand in the recipe instead.
    """
    for kind in spec.statistics:
        found = next((file for file in files if file.kind == kind), None)
        if found is not None:
            return found
    if not spec.statistics or METRICS in spec.statistics:
        return None
    wanted = " or ".join(spec.statistics)
    given = ", ".join(file.kind for file in files)
    raise RecipeError(
        f"{where}, model {model!r}: method {spec.name} needs statistics of kind {wanted}, "
        + (f"but {given} is given; " if given else "and none are given; ")
        + "name their file under the model's `statistics:`."
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
    spec: MethodSpec,
    files: Sequence[MeasuredStatistics | None],
    experts: Sequence[tuple[View, OutputTensor]],
    name: str,
    problems: Problems,
) -> tuple[MeasuredLeaves, ...] | None:
    """What the files hold of one tensor, expert by expert; () where they all have nothing of it.

    None, with a finding, where only some have it or where a shape does not fit.
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
        problems.error(
            name,
            "missing-statistics",
            experts[lacking][0].label,
            f"The statistics of model {experts[lacking][0].label!r} lack tensors that those of others have",
            "collect them again over the same tensors for every model",
        )
        return None
    for file, one, (view, item) in zip(files, found, experts, strict=True):
        assert file is not None
        assert one is not None
        tensors = [file.statistics.checkpoint.tensors[leaf.tensor] for leaf in one.leaves]
        wrong = misfit(item.shape, [tensor.shape for tensor in tensors], one.kind)
        if wrong:
            problems.error(
                name,
                "statistics-shape",
                view.label,
                f"{tensors[0].location} {wrong}",
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
        parts = file.statistics.names(own[0]) if len(own) == 1 else ()
        if parts:
            leaves = tuple(Leaf(file.label, part) for part in parts)
            first = file.statistics.checkpoint.tensors[parts[0]]
            divisor = file.statistics.header.divisor
            return MeasuredLeaves(file.kind, leaves, first.shape, divisor, first.dtype)
    return None
