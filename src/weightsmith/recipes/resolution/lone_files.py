"""Files beside the main set that not every model of a merge has: the config source's are copied, others left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from weightsmith.findings import Severity
from weightsmith.naming import beside
from weightsmith.recipes.resolution.combine import Combiner
from weightsmith.recipes.resolution.formula import OutputTensor
from weightsmith.recipes.resolution.output_sections import MethodPlan
from weightsmith.recipes.resolution.placement import Placed
from weightsmith.recipes.resolution.views import View
from weightsmith.wording import shown


@dataclass(frozen=True, slots=True)
class LoneFiles:
    """Settles tensors of such files, with a warning; `config_source` is what the result has its configuration from.

    A head or projector of one model alone is no fault of the others, as a missing tensor of the main set is.
    """

    config_source: View
    combiner: Combiner

    def made(self, one: Placed, treatment: MethodPlan) -> Sequence[OutputTensor]:
        """The output tensor at a place, if there is one: settled here, or combined like all others."""
        if "/" in one.place.name and treatment.keep is None:
            settled = self.settled(one.place.name, one.section.views)
            if settled is not None:
                return settled
        item = self.combiner.combine(one.section, treatment, one.items, one.base, one.place)
        return () if item is None else (item,)

    def settled(self, name: str, views: Iterable[View]) -> Sequence[OutputTensor] | None:
        """What becomes of a tensor: its copy, nothing, or None where it is to be merged like any other.

        It is merged where each of `views` has the file that it lies in, and where the recipe says what to do about
        missing tensors.
        """
        found = beside(name)
        if found is None or self.combiner.missing != "error":
            return None
        file = found[0]
        lacking = list(dict.fromkeys(view.label for view in views if not _has(view, file)))
        if not lacking:
            return None
        own = self.config_source.items.get(name)
        models = (
            " and ".join(map(repr, lacking[:2])) if len(lacking) < 3 else f"{len(lacking)} models"
        )
        verb = "lacks" if len(lacking) == 1 else "lack"
        rule = f"`rules: [{{match: {{glob: {shown(f'{file}/*')}}}, keep: MODEL}}]`"
        if own is not None:
            then = f"so it is copied from {self.config_source.label!r}"
            fix = f"merge models that all have it, or say with {rule} whose is to be kept"
        else:
            then = f"and so does {self.config_source.label!r}, which gives the configuration, so it is left out"
            fix = f"name a model that has it as `donor:`, or say with {rule} whose is to be kept"
        self.combiner.problems.about(
            name,
            Severity.WARNING,
            "file-of-some",
            file,
            f"{models} {verb} the file {shown(file)}, {then}",
            fix,
        )
        return () if own is None else (self.combiner.copied(own, own, own.place),)


def _has(view: View, file: str) -> bool:
    return any(name.startswith(f"{file}/") for name in view.items)
