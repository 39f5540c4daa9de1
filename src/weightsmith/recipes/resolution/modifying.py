"""`modify:` in recipes: modifiers of the experts, with lookups for their parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from weightsmith.errors import RecipeError
from weightsmith.methods import Base, modifiers
from weightsmith.recipes.language.modifier_calls import Modification
from weightsmith.recipes.language.parameter_settings import ABSENT, Lookup, lookups
from weightsmith.recipes.language.schema import MethodStep
from weightsmith.tensors import Place

Steps = tuple[MethodStep, ...]


@dataclass(frozen=True, slots=True)
class ModifierUse:
    """A modifier with its parameters as a level of a recipe gives them."""

    spec: modifiers.ModifierSpec
    parameters: tuple[Lookup, ...]

    def at(self, place: Place) -> Modification:
        """The modifier with its final numbers for one tensor."""
        found = ((p.parameter.key, p.at(place.name, place)) for p in self.parameters)
        given = tuple((key, value) for key, value in found if value is not ABSENT)
        return Modification(self.spec.name, given)


def modifier_uses(
    steps: Sequence[MethodStep], *, has_base: bool, where: str, preset: str
) -> tuple[ModifierUse, ...]:
    """The modifiers of a level; raises RecipeError for one that does not exist or lacks its base."""
    uses = []
    for i, step in enumerate(steps):
        spec = modifiers.get(step.method)
        if spec.base is Base.REQUIRED and not has_base:
            raise RecipeError(f"{where}: modifier {spec.name} needs a base; give `base_model:`.")
        found = lookups(
            spec.parameters,
            (step.parameters,),
            per_expert=False,
            where=f"{where}: modify[{i}]",
            preset=preset,
        )
        uses.append(ModifierUse(spec, found))
    return tuple(uses)


def closest(*levels: Steps | None) -> Steps:
    """The modifiers of the first level that has any word on them; an empty list turns them off."""
    return next((level for level in levels if level is not None), ())
