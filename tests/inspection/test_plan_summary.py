"""Summaries, explanations and predicted costs of plans."""

from __future__ import annotations

import pytest
import torch

from weightsmith.engine.planning.cost import predict
from weightsmith.engine.planning.plan_making import make_plan
from weightsmith.errors import UsageError
from weightsmith.inspection.explanation import explain_tensor
from weightsmith.inspection.plan_summary import summarize_plan
from weightsmith.recipes import Recipe


@pytest.fixture
def plan(checkpoint):
    paths = {
        name: str(checkpoint(name, {"w": torch.full((6, 4), float(i)), "n": torch.arange(3) * 0}))
        for i, name in enumerate(("base", "one", "two"))
    }

    def make(document, **options):
        return make_plan(Recipe.load({"weightsmith": 1, **document(paths)}), threads=1, **options)

    return make


def linear(paths):
    return {"merge_method": "linear", "models": [{"model": paths["one"]}, {"model": paths["two"]}]}


def slerp(paths):
    return {
        "merge_method": "slerp",
        "base_model": paths["base"],
        "models": [{"model": paths["one"]}],
        "parameters": {"t": 0.25},
    }


def nested(paths):
    return {
        "merge_method": "slerp",
        "base_model": paths["base"],
        "models": [{"model": linear(paths)}],
        "parameters": {"t": 0.25},
    }


def test_steps_say_what_is_done_to_how_many_tensors(plan):
    steps = {s.what: (s.tensors, s.elements, s.passes) for s in summarize_plan(plan(linear)).steps}
    assert steps == {"linear": (1, 24, 1), "compare and copy": (1, 3, 1)}


def test_what_is_done_is_worked_out_once_for_each_kind_of_tensor(checkpoint):
    shapes = {f"layers.{i}.{part}.weight": (4, 3) for i in range(3) for part in "ab"}
    tensors = {name: torch.ones(shape) for name, shape in shapes.items()}
    tensors |= {"layers.1.a.weight": torch.ones(4, 3, dtype=torch.float16), "n": torch.ones(5)}
    models = [{"model": str(checkpoint(name, tensors))} for name in ("one", "two")]
    document = {"weightsmith": 1, "merge_method": "linear", "models": models}
    made = make_plan(Recipe.load(document), threads=1)
    assert sorted(count for _, count in made.works) == [1, 1, 5]
    of_name = {tensor.output.name: tensor.work for tensor in made.tensors}
    assert of_name["layers.0.a.weight"] is of_name["layers.2.b.weight"]
    assert of_name["layers.1.a.weight"].read_bytes == 2 * 4 * 3 * 2
    assert made.read_bytes == made.input_bytes == 2 * (5 * 12 * 4 + 12 * 2 + 5 * 4)


def test_nested_methods_are_named_from_the_inside_out(plan):
    assert "linear > slerp" in {s.what for s in summarize_plan(plan(nested)).steps}


def test_bytes_of_inputs_are_counted_once_and_passes_multiply_what_is_read(plan):
    made = plan(slerp)
    weights = 2 * 24 * 4
    integers = made.read_bytes - 2 * weights
    assert made.input_bytes == weights + integers
    assert sum(i.bytes_read for i in summarize_plan(made).inputs) == made.input_bytes


def test_the_prediction_grows_with_work_and_shrinks_with_the_backend(plan):
    once, twice = predict(plan(linear)), predict(plan(nested))
    assert 0 < once.warm_seconds < twice.warm_seconds
    assert once.warm_seconds <= once.cold_seconds
    assert predict(plan(linear, backend="torch")).warm_seconds >= once.warm_seconds


def test_an_explanation_is_a_tree_down_to_the_bytes(plan):
    explained = explain_tensor(plan(nested), "w")
    formula = explained.formula
    assert formula["method"] == "slerp"
    assert formula["parameters"]["t"] == {"value": 0.25, "from": "given"}
    inner = formula["experts"][0]["of"]
    assert inner["method"] == "linear"
    leaf = inner["experts"][1]["of"]
    with open(leaf["file"], "rb") as stream:
        stream.seek(leaf["byte"])
        assert torch.frombuffer(bytearray(stream.read(4)), dtype=torch.float32).item() == 2.0


def test_copied_integers_are_explained_as_such(plan):
    explained = explain_tensor(plan(linear), "n")
    assert explained.action == "compare and copy"
    assert explained.formula["kind"] == "same"
    assert len(explained.formula["tensors"]) == 2


def test_a_misspelt_tensor_is_answered_with_the_nearest(checkpoint):
    path = str(checkpoint("m", {"model.norm.weight": torch.ones(2)}))
    made = make_plan(
        Recipe.load({"weightsmith": 1, "merge_method": "linear", "models": [{"model": path}]})
    )
    with pytest.raises(UsageError, match=r"did you mean 'model\.norm"):
        explain_tensor(made, "model.norm.wieght")
