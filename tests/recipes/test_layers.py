"""Where layers go: positions for gradients, slices, numbering, what lies outside the stack."""

from __future__ import annotations

import numpy as np
import pytest

from weightsmith.errors import RecipeError
from weightsmith.recipes.resolution.formula import Leaf

Q = "model.layers.{}.self_attn.q_proj.weight"


def test_positions_run_from_0_to_1_over_the_layers_and_are_0_outside(make, solve):
    make("a", 5), make("b", 5)
    solved = solve(
        "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: [0, 1]}\n"
    )
    assert [solved.outputs[Q.format(k)].place.depth for k in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert solved.outputs[name].place.depth == 0
        assert solved.formula(name).per_expert[0] == (("weight", 0.0),)


def test_an_output_of_models_has_the_place_of_the_donors_tensor(make, solve):
    make("a"), make("b")
    solved = solve("merge_method: linear\nmodels: [{model: a}, {model: b}]\n")
    places = solved.resolved.checkpoints["a"].places
    for name, output in solved.outputs.items():
        assert output.place is places[name]
        assert output.formula.place is places[name]


def test_a_single_layer_is_at_position_1(make, solve):
    make("a", 1), make("b", 1)
    solved = solve(
        "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: [0, 1]}\n"
    )
    assert solved.outputs[Q.format(0)].place.depth == 1


FRANKEN = """
merge_method: passthrough
slices:
  - sources: [{model: a, layer_range: [0, 3]}]
  - sources: [{model: b, layer_range: [1, 4]}]
dtype: float32
"""


def test_slices_number_layers_through_and_copy_bytes(make, solve):
    make("a"), make("b")
    solved = solve(FRANKEN)
    expected = [("a", 0), ("a", 1), ("a", 2), ("b", 1), ("b", 2), ("b", 3)]
    for k, (model, layer) in enumerate(expected):
        assert solved.formula(Q.format(k)) == Leaf(model, Q.format(layer))
    assert solved.outputs[Q.format(5)].place.layers == 6
    assert solved.resolved.layer_sources == (0, 1, 2, 1, 2, 3)
    assert solved.resolved.stack == "model.layers"
    assert Q.format(6) not in solved.outputs


def test_gradients_restart_in_every_slice(make, solve):
    make("a"), make("b")
    solved = solve(FRANKEN)
    assert [solved.outputs[Q.format(k)].place.depth for k in range(6)] == [0, 0.5, 1, 0, 0.5, 1]


def test_embeddings_come_from_the_first_slice_and_the_head_from_the_last(make, solve):
    make("a"), make("b")
    solved = solve(FRANKEN)
    assert solved.formula("model.embed_tokens.weight") == Leaf("a", "model.embed_tokens.weight")
    assert solved.formula("model.norm.weight") == Leaf("b", "model.norm.weight")
    assert solved.formula("lm_head.weight") == Leaf("b", "lm_head.weight")


def test_slices_that_keep_the_donors_layers_leave_its_configuration_alone(make, solve):
    make("a"), make("b")
    solved = solve(
        """
merge_method: linear
slices:
  - sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]
  - sources: [{model: a, layer_range: [2, 4]}, {model: b, layer_range: [2, 4]}]
parameters: {weight: 1}
"""
    )
    assert solved.resolved.layer_sources is None


def test_a_slice_with_ranges_of_different_length_is_refused(make, solve):
    make("a"), make("b")
    with pytest.raises(RecipeError, match="equally many layers"):
        solve(
            "merge_method: linear\nparameters: {weight: 1}\nslices:\n"
            "  - sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 3]}]\n"
        )


def test_a_range_past_the_last_layer_is_an_error_with_the_number_of_layers(make, solve):
    make("a")
    solved = solve(
        "merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [2, 9]}]}]\n"
    )
    assert "past the 4 layers of 'a'" in solved.found()["layer-range"]


def test_the_same_model_twice_is_refused_by_mergekit_and_allowed_natively(make, solve):
    make("a")
    slices = (
        "slices: [{sources: [{model: a, layer_range: [0, 1]}, {model: a, layer_range: [3, 4]}]}]\n"
        "parameters: {weight: 0.5}\n"
    )
    with pytest.raises(RecipeError, match="listed twice"):
        solve("merge_method: linear\n" + slices)
    formula = solve("weightsmith: 1\nmerge_method: linear\n" + slices).formula(Q.format(0))
    assert formula.experts == (Leaf("a", Q.format(0)), Leaf("a", Q.format(3)))
    assert formula.labels == ("a", "a#2")


def test_mergekit_requires_the_base_among_the_sources_of_a_slice(make, solve):
    make("a"), make("b")
    text = (
        "merge_method: task_arithmetic\nbase_model: a\nparameters: {weight: 1}\n"
        "slices: [{sources: [{model: b, layer_range: [1, 3]}]}]\n"
    )
    with pytest.raises(RecipeError, match="not among the sources"):
        solve(text)
    formula = solve("weightsmith: 1\n" + text).formula(Q.format(0))
    assert formula.base == Leaf("a", Q.format(1))
    assert formula.experts == (Leaf("b", Q.format(1)),)


def test_models_of_different_depth_are_one_error_that_names_slices(make, solve):
    make("a", 4), make("b", 6)
    solved = solve(
        "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n"
    )
    assert "4 in 'a', 6 in 'b'" in solved.found()["layer-count"]
    assert "slices" in solved.found()["layer-count"]


def test_a_method_and_a_base_per_slice(make, solve):
    make("a"), make("b")
    solved = solve(
        """
weightsmith: 1
merge_method: linear
base_model: a
slices:
  - sources: [{model: a, layer_range: [0, 2]}, {model: b, layer_range: [0, 2]}]
    merge_method: slerp
    parameters: {t: 0.5}
  - sources: [{model: b, layer_range: [2, 4]}]
    merge_method: passthrough
"""
    )
    assert not solved.found()
    assert solved.formula(Q.format(0)).method == "slerp"
    assert solved.formula(Q.format(2)) == Leaf("b", Q.format(2))


def test_slices_of_the_same_models_are_one_merge_for_statistics_over_the_model(make, solve):
    make("a"), make("b"), make("c")
    solved = solve(
        """
weightsmith: 1
merge_method: ties
base_model: a
slices:
  - sources: [{model: b, layer_range: [0, 1]}]
  - sources: [{model: c, layer_range: [1, 2]}]
  - sources: [{model: b, layer_range: [2, 4]}]
"""
    )
    scopes = [solved.formula(Q.format(k)).scope_id for k in range(4)]
    assert scopes[0] == scopes[2] == scopes[3] != scopes[1]


def test_raw_files_have_position_0_everywhere_in_mergekits_semantics(make, solve):
    make("a.safetensors"), make("b.safetensors")
    text = (
        "merge_method: linear\nparameters: {weight: [0, 1]}\n"
        "models: [{model: a.safetensors}, {model: b.safetensors}]\n"
    )
    assert {output.place.depth for output in solve(text).resolved.outputs} == {0.0}
    native = solve("weightsmith: 1\n" + text)
    assert native.outputs[Q.format(3)].place.depth == 1.0


def vision_language() -> dict[str, np.ndarray]:
    names = [f"language_model.model.layers.{i}.mlp.up_proj.weight" for i in range(3)]
    names += [f"language_model.model.layers.{i}.mlp.down_proj.weight" for i in range(3)]
    names += [f"vision_tower.encoder.layers.{i}.mlp.fc1.weight" for i in range(2)]
    names += [f"vision_tower.encoder.layers.{i}.mlp.fc2.weight" for i in range(2)]
    names += ["multi_modal_projector.linear.weight", "language_model.lm_head.weight"]
    return {name: np.zeros((4, 4), np.float32) for name in names}


MODULES = """
merge_method: linear
base_model: a
modules:
  text_decoder:
    models: [{model: a}, {model: b}]
    parameters: {weight: 0.5}
  vision_tower:
    models: [{model: b}]
    parameters: {weight: 1}
"""


def test_modules_merge_their_own_tensors_and_mergekit_drops_the_rest(make, solve):
    for name in "ab":
        make(name, extra=vision_language(), only_extra=True)
    solved = solve(MODULES)
    text = solved.formula("language_model.model.layers.2.mlp.up_proj.weight")
    assert len(text.experts) == 2
    assert solved.outputs["vision_tower.encoder.layers.1.mlp.fc1.weight"].place.depth == 1.0
    assert "multi_modal_projector.linear.weight" not in solved.outputs
    assert "multi_modal_projector" in solved.found("warning")["not-written"]


def test_native_modules_copy_the_rest_from_the_donor(make, solve):
    for name in "ab":
        make(name, extra=vision_language(), only_extra=True)
    solved = solve("weightsmith: 1\n" + MODULES)
    name = "multi_modal_projector.linear.weight"
    assert solved.formula(name) == Leaf("a", name)


def test_a_module_without_tensors_is_refused_with_the_known_names(make, solve):
    for name in "ab":
        make(name, extra=vision_language(), only_extra=True)
    with pytest.raises(RecipeError, match=r"text_modell.*vision_tower"):
        solve(MODULES.replace("text_decoder", "text_modell"))


def test_mergekit_wants_modules_where_there_are_several_stacks(make, solve):
    make("a", extra=vision_language(), only_extra=True)
    with pytest.raises(RecipeError, match="several stacks"):
        solve("merge_method: passthrough\nslices: [{sources: [{model: a, layer_range: [0, 2]}]}]\n")


@pytest.fixture
def predicting(make):
    """`base` has a block behind its two layers that predicts further tokens, `tuned` has none."""
    block = {
        f"model.layers.2.{name}": np.ones(4, np.float32)
        for name in ("enorm.weight", "hnorm.weight")
    }
    make("base", 2, extra=block, config={"num_nextn_predict_layers": 1})
    make("tuned", 2)


@pytest.mark.usefixtures("predicting")
def test_a_block_that_predicts_further_tokens_is_no_layer(solve):
    text = (
        "weightsmith: 1\nmerge_method: linear\nbase_model: base\nparameters: {weight: 1}\n"
        "models: [{model: base}, {model: tuned}]\n"
    )
    assert set(solve(text).found()) == {"missing-tensor"}
    solved = solve(text + "missing: base\n")
    assert not solved.found()
    assert "model.layers.2.enorm.weight" in solved.outputs


@pytest.mark.usefixtures("predicting")
def test_a_block_that_predicts_further_tokens_follows_the_last_slice(solve):
    text = (
        "weightsmith: 1\nmerge_method: passthrough\n"
        "slices:\n- sources: [{model: base, layer_range: [0, 2]}]\n- sources: [{model: base, layer_range: [1, 2]}]\n"
    )
    solved = solve(text)
    assert not solved.found()
    assert solved.outputs["model.layers.3.enorm.weight"].formula == Leaf(
        "base", "model.layers.2.enorm.weight"
    )
    assert "model.layers.2.self_attn.q_proj.weight" in solved.outputs
    past = text.replace("[1, 2]", "[1, 3]")
    assert "past the 2 layers" in solve(past).found()["layer-range"]
