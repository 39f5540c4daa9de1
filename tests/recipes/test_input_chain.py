"""The chain from opened checkpoints to the views that are merged: steps follow one another, and swap nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from weightsmith.adapters import Reference
from weightsmith.checkpoints import open_checkpoint, untied
from weightsmith.recipes import load
from weightsmith.recipes.resolution.input_chain import with_tensors
from weightsmith.recipes.resolution.inputs import Inputs
from weightsmith.recipes.resolution.merging import Resolver
from weightsmith.recipes.resolution.views import View, view_of
from weightsmith.tensors import DType

A = Reference("a")
HEAD = "lm_head.weight"
NORM = "model.norm.weight"


@pytest.fixture
def inputs(make: Callable[..., Path]) -> Inputs:
    paths = {name: make(name, head=False) for name in ("a", "b")}
    return Inputs(lambda reference: open_checkpoint(paths[str(reference)]))


def with_head(name: str) -> Callable[[View], View]:
    return lambda view: view_of(untied(view.checkpoint, name), view.label)


def test_a_step_changes_nothing_that_a_shorter_chain_has_given(inputs):
    before = inputs.view(A)
    longer = inputs.then(with_head(HEAD))
    assert HEAD in longer.view(A).items
    assert inputs.view(A) is before
    assert HEAD not in before.items
    assert HEAD not in before.checkpoint.tensors


def test_steps_follow_one_another_and_each_view_is_made_once(inputs):
    seen = []

    def step(view: View) -> View:
        seen.append(sorted(view.items))
        return view

    chain = inputs.then(step).then(with_head(HEAD)).then(step)
    assert chain.view(A) is chain.view(A)
    assert [HEAD in names for names in seen] == [False, True]


def test_leaves_of_every_view_of_a_label_are_found(inputs):
    """Two recipes inside a third may give one checkpoint heads of different names."""
    for name in ("first_head", "other_head"):
        inputs.then(with_head(name)).view(A)
    assert {"first_head", "other_head", NORM} <= inputs.checkpoints["a"].tensors.keys()
    assert {"first_head", "other_head"} <= inputs.checkpoints["a"].places.keys()


def test_other_tensors_count_for_dtypes_as_what_they_replace(inputs):
    view = inputs.view(A)
    other = view.checkpoint.tensors["model.layers.0.mlp.up_proj.weight"]
    made = with_tensors(view, {NORM: other})
    assert (made.label, made.config_label) == ("a", "a")
    assert made.items[NORM].dtype is DType.FLOAT32
    assert made.checkpoint.tensors[NORM] is other
    assert view.checkpoint.tensors[NORM] is not other


def nested(*models: str) -> str:
    listed = "".join(f"  - model: {model}\n" for model in models)
    return f"weightsmith: 1\nmerge_method: linear\nuntie: true\nmodels:\n{listed}"


INNER = "{merge_method: linear, models: [{model: tied}, {model: untied}]}"


@pytest.mark.parametrize("models", [("tied", INNER), (INNER, "tied")])
def test_a_model_is_untied_wherever_the_recipe_stands_that_gives_it_a_reason(make, solve, models):
    make("tied", head=False), make("untied")
    solved = solve(nested(*models))
    assert solved.found() == {}
    assert HEAD in solved.outputs


def test_a_recipe_inside_another_gives_what_it_gives_alone(make, solve):
    """Its models are untied for their own reasons, whatever stands before it."""
    make("tied", head=False), make("other", head=False), make("untied")
    alone = "{name: both, merge_method: linear, models: [{model: tied}, {model: other}]}"
    for models in ((INNER, alone), (alone, INNER)):
        assert "merge the inner recipe 'both'" in solve(nested(*models)).found()["tied-untied-mix"]


def test_a_step_reaches_models_of_recipes_inside_too(make):
    paths = {name: make(name) for name in ("a", "b")}
    inputs = Inputs(lambda reference: open_checkpoint(paths[str(reference)]))

    def without_norm(view: View) -> View:
        return view.only(name for name in view.items if name != NORM)

    recipe = load(
        "weightsmith: 1\nmerge_method: linear\n"
        "models: [{model: {merge_method: passthrough, models: [{model: a}]}}, {model: b}]\n"
    )
    resolver = Resolver(inputs, inputs.then(without_norm), unties=False)
    made = resolver.result(recipe.document, inherited="paper", scope="merge")
    names = {item.name for item in made.items}
    assert NORM not in names
    assert HEAD in names
