"""Merges that go on with an earlier one: its state becomes parameters like any others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from weightsmith.checkpoints import MergeState, read_state
from weightsmith.errors import CompatibilityError, RecipeError
from weightsmith.methods import MethodSpec
from weightsmith.recipes.language.modifier_calls import Assignments
from weightsmith.recipes.resolution.formula import Cast, Leaf, OutputTensor
from weightsmith.recipes.resolution.views import View


def continues(spec: MethodSpec) -> bool:
    """Whether merges of a method can go on with an earlier one."""
    return hasattr(spec.implementation, "state")


def with_previous_state(
    spec: MethodSpec, preset: str, shared: Assignments, first: View, item: OutputTensor | None
) -> Assignments:
    """The parameters of a merge, with those that its first model's folder knows where `previous` asks for them.

    `item` is the tensor of that model, None where it lacks it. Parameters that are given stay as they are. Raises
    RecipeError where there is nothing to go on with, CheckpointError if the folder has no such state, and
    CompatibilityError if its merge had other rules.
    """
    if not continues(spec):
        return shared
    given: dict[str, Any] = {**spec.defaults(preset), **dict(shared)}
    if not given["previous"]:
        return shared
    if item is None:
        raise RecipeError(
            f"{spec.name} is to go on with {first.label!r}, which lacks tensors that the others have; leave those "
            "to another method with a rule."
        )
    lacking = [k for k in spec.parameters if k.startswith("previous_") and given[k] is None]
    if not lacking:
        return shared
    if first.is_recipe:
        raise RecipeError(
            f"{spec.name} is to go on with {first.label!r}, which a recipe makes and which has no state yet; merge it "
            "into a folder and name that."
        )
    folder = first.checkpoint.path
    state = read_state(folder, spec.name)
    _require_rules(state, given, item, folder)
    found = {key: state.numbers[key] for key in lacking if key in state.numbers}
    return (*((k, v) for k, v in shared if k not in found), *found.items())


def _require_rules(
    state: MergeState, given: dict[str, Any], item: OutputTensor, folder: Path
) -> None:
    formula = item.formula.inner if isinstance(item.formula, Cast) else item.formula
    name = formula.tensor if isinstance(formula, Leaf) else item.name
    if name not in state.tensors:
        raise CompatibilityError(
            f"{name!r} of {str(folder)!r} was not merged by {state.method}, which cannot go on with it; leave it to "
            "the method that made it, with a rule."
        )
    for key, was in state.tensors[name].rules.items():
        if given[key] != was:
            raise CompatibilityError(
                f"{state.method} is to go on with {name!r} of {str(folder)!r} with {key} {given[key]!r}, but that was "
                f"merged with {key} {was!r}; set it so, or merge all experts again."
            )
