"""Gradients with respect to free numbers: those of autograd through the merged graph, and of finite differences."""

from __future__ import annotations

import json
import random
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from weightsmith.engine import FreeMerge, make_plan
from weightsmith.engine.planning.free_tracing import FreeTracer
from weightsmith.engine.running.free_planning import near_by
from weightsmith.errors import GradientError, UsageError
from weightsmith.graph import evaluate_model
from weightsmith.methods import registry
from weightsmith.recipes import load, with_numbers
from weightsmith.tensors import DType, MemoryTensor

from .test_evaluating import CONFIG, SHAPES, WITHOUT, one, recipe_of, ties

# Methods that measure over the whole model what depends on their numbers.
OVER_THE_MODEL = {"lines"}
# Counts that three experts and two layers have.
FEWER = {
    "layer_swapping": {"bottom": {"free": [0, 2], "start": 1}, "top": {"free": [0, 2], "start": 1}},
    "trimmed_mean": {"k": {"free": [0, 2], "start": 1}},
}


def write(root: Path, dtype: type, experts: int = 3, shapes=SHAPES) -> Path:
    generator = np.random.default_rng(0)
    base = {n: generator.normal(size=s) for n, s in shapes.items()}
    for k, name in enumerate(("base", *"abcdefghijklmnop"[:experts])):
        changed = {n: x + 0.1 * k * generator.normal(size=x.shape) for n, x in base.items()}
        (root / name).mkdir(parents=True)
        tensors = {n: x.astype(dtype) for n, x in changed.items()}
        save_file(tensors, root / name / "model.safetensors", metadata={"format": "pt"})
        (root / name / "config.json").write_text(json.dumps(CONFIG))
    return root


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("wide"), np.float64)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("narrow"), np.float32)


def losses(dtype: DType) -> dict[str, MemoryTensor]:
    generator = np.random.default_rng(5)
    numbers = np.float64 if dtype is DType.FLOAT64 else np.float32
    return {
        name: MemoryTensor.of(name, dtype, generator.normal(size=shape).astype(numbers))
        for name, shape in SHAPES.items()
    }


def inner_values(plan) -> dict[str, float]:
    """Values away from bounds; whole numbers where both bounds are."""
    rng = random.Random(1)
    found = {}
    for name, number in plan.free.numbers.items():
        room = number.high - number.low
        value = rng.uniform(number.low + 0.2 * room, number.high - 0.2 * room)
        is_whole = float(number.low).is_integer() and room == 2
        found[name] = float(round(value)) if is_whole else value
    return found


def starts(plan) -> dict[str, float]:
    return {name: number.start for name, number in plan.free.numbers.items()}


def finite_difference(merge: FreeMerge, values: dict[str, float], name: str) -> float:
    merge.forget()
    held = merge.evaluate(values)
    weights = losses(DType.FLOAT64)

    def loss(value: float) -> float:
        held.update(merge.evaluate({**values, name: value}))
        return sum(
            float(np.frombuffer(held[n].data) @ np.frombuffer(w.data)) for n, w in weights.items()
        )

    number, at = merge.numbers[name], values[name]
    step = min(1e-5, 0.1 * (number.high - number.low))
    if number.low <= at - step and at + step <= number.high:
        return (loss(at + step) - loss(at - step)) / (2 * step)
    step = step if at - step < number.low else -step
    return (4 * loss(at + step) - loss(at + 2 * step) - 3 * loss(at)) / (2 * step)


@pytest.mark.parametrize("name", sorted(set(registry.names()) - WITHOUT))
def test_every_gradient_of_a_method_is_that_of_autograd_and_finite_differences_or_refused(
    wide, name
):
    """Where numbers start, most are 1 or 0, where methods leave out operations."""
    data = recipe_of(registry.get(name), wide)
    data["parameters"] |= FEWER.get(name, {})
    plan = make_plan(load(data), threads=1)
    merge = FreeMerge(plan)
    weights = losses(DType.FLOAT64)
    for values in (inner_values(plan), starts(plan)):
        asked = merge.differentiable(values)
        for number in values.keys() - asked:
            with pytest.raises(GradientError, match="counts or selects with it"):
                merge.gradient(values, weights, [number])
        if name in OVER_THE_MODEL:
            with pytest.raises(GradientError, match="statistic of the whole model"):
                merge.gradient(values, weights, asked)
            continue
        found = merge.gradient(values, weights, asked)
        assert tuple(found) == asked
        expected = autograd(plan, values, weights, values.keys() - asked)
        for number in asked:
            near = pytest.approx(expected.get(number, 0.0), rel=1e-5, abs=1e-5)
            assert found[number] == near
    if name not in OVER_THE_MODEL:
        for number in asked:
            near = pytest.approx(finite_difference(merge, values, number), rel=1e-5, abs=1e-5)
            assert found[number] == near


def as_tensor(tensor: Any) -> torch.Tensor:
    buffer = bytearray(tensor.nbytes)
    tensor.read_into(0, tensor.numel, memoryview(buffer))
    return torch.frombuffer(buffer, dtype=getattr(torch, tensor.dtype.value)).reshape(tensor.shape)


def autograd(plan, values: dict[str, float], weights, bound=frozenset()) -> dict[str, float]:
    """The gradients of the graph of the whole model in memory, in which bound numbers have their values."""
    given = {name: values[name] for name in bound}
    tracer = FreeTracer()
    tracer.values, tracer.nearby = values, near_by(plan.free.numbers, values)
    leaves: dict[str, Any] = {}
    outputs, sources, known = {}, {}, {}
    resolved = plan.free.resolved_for(values, tracer.nearby).resolved
    for free in resolved.outputs:
        output = replace(free, formula=with_numbers(free.formula, given))
        traced = tracer.trace(output)
        outputs[output.name] = traced.output
        checkpoints = resolved.checkpoints
        stored = [checkpoints[leaf.checkpoint].tensors[leaf.tensor] for leaf in traced.sources]
        sources[output.name] = [as_tensor(tensor) for tensor in stored]
        for node, value in traced.numbers.items():
            name = node.attributes[0].name
            if name not in leaves:
                leaves[name] = torch.tensor(value, dtype=torch.float64, requires_grad=True)
            known[node] = leaves[name]
    merged = evaluate_model(outputs, sources, known=known)
    total = sum((merged[n].double() * as_tensor(w)).sum() for n, w in weights.items())
    if not total.requires_grad:
        return {}
    total.backward()
    return {name: float(leaf.grad) for name, leaf in leaves.items() if leaf.grad is not None}


def task_arithmetic(models: Path) -> dict[str, Any]:
    weights = {"weight": one(0, 2, 1, ["expert", "tensor"]), "lambda": one(0, 2, 0.7, "layer")}
    return {**ties(models, **weights), "merge_method": "task_arithmetic"}


def nested(models: Path, method: str, **parameters: Any) -> dict[str, Any]:
    """A method that measures what has free numbers in it."""
    return {
        "weightsmith": 1,
        "merge_method": method,
        "base_model": str(models / "base"),
        "models": [{"model": task_arithmetic(models)}, {"model": str(models / "c")}][
            : 1 if method == "slerp" else 2
        ],
        "parameters": parameters,
    }


RECIPES = {
    "products": task_arithmetic,
    "elections": lambda m: ties(m, weight=one(0.2, 2, 0.8, ["expert", "role"]), density=0.5),
    "a mean": lambda m: {
        **{
            k: v for k, v in ties(m, weight=one(0.2, 1, 0.8, "expert")).items() if k != "base_model"
        },
        "merge_method": "linear",
    },
    "sums of what depends": lambda m: nested(m, "slerp", t=one(0, 1, 0.3)),
    "numbers of rows": lambda m: nested(
        m, "nuslerp", weight=0.5, nuslerp_flatten=False, nuslerp_row_wise=True
    ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_streamed_gradients_are_those_of_autograd_through_the_merged_graph(narrow, name):
    plan = make_plan(load(RECIPES[name](narrow)), threads=1)
    values = inner_values(plan)
    weights = losses(DType.FLOAT32)
    merge = FreeMerge(plan)
    found = merge.gradient(values, weights)
    assert merge.differentiable(values) == tuple(values)
    for number, gradient in autograd(plan, values, weights).items():
        assert found[number] == pytest.approx(gradient, rel=1e-5, abs=1e-5)


def test_a_number_has_the_gradients_of_the_tensors_that_are_given(narrow):
    plan = make_plan(load(task_arithmetic(narrow)), threads=1)
    weights = losses(DType.FLOAT32)
    merge = FreeMerge(plan)
    every = merge.gradient("start", weights)
    parts = [merge.gradient("start", {name: weights[name]}) for name in weights]
    for number, gradient in every.items():
        assert gradient == pytest.approx(sum(part[number] for part in parts), rel=1e-12, abs=1e-12)
    assert parts[0]["lambda[layer 1]"] == 0.0


def test_statistics_of_the_model_that_depend_on_numbers_have_no_streamed_gradient(narrow):
    data = ties(narrow, weight=one(0.2, 2, 0.8, "expert"))
    data["then"] = [{"lines": {}}]
    merge = FreeMerge(make_plan(load(data), threads=1))
    with pytest.raises(GradientError, match="statistic of the whole model"):
        merge.gradient("start", losses(DType.FLOAT32))


def test_numbers_of_a_recipe_that_is_two_models_of_another_are_told_apart(narrow):
    inner = task_arithmetic(narrow)
    data = {
        "weightsmith": 1,
        "merge_method": "linear",
        "models": [
            {"model": inner, "parameters": {"weight": one(0.1, 1, 0.3)}},
            {"model": inner, "parameters": {"weight": 0.4}},
        ],
    }
    plan = make_plan(load(data), threads=1)
    values, weights = starts(plan), losses(DType.FLOAT32)
    found = FreeMerge(plan).gradient(values, weights)
    assert found == pytest.approx(autograd(plan, values, weights), rel=1e-5, abs=1e-5)
    places = [f"models[{i}].model.parameters.lambda[layer 0]" for i in range(2)]
    assert found[places[0]] * 0.4 == pytest.approx(found[places[1]] * 0.3, rel=1e-5)


def peak_bytes(root: Path, method: str, experts: int) -> int:
    names = "abcdefghijklmnop"[:experts]
    data = {
        **task_arithmetic(root),
        "merge_method": method,
        "models": [{"model": str(root / name)} for name in names],
    }
    merge = FreeMerge(make_plan(load(data), threads=1, memory_bytes=2**27))
    weights = {"big": MemoryTensor.of("big", DType.FLOAT32, np.ones((500, 1000), np.float32))}
    # Statistics of the model are measured within the budget of a merge, and kept.
    merge.gradient("start", weights)
    tracemalloc.start()
    try:
        merge.gradient("start", weights)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("method", ["task_arithmetic", "ties"])
def test_memory_does_not_grow_with_the_number_of_experts(tmp_path, method):
    root = write(tmp_path, np.float32, experts=16, shapes={"big": (500, 1000)})
    few, many = (peak_bytes(root, method, count) for count in (2, 16))
    assert few > 2**20
    assert many < 1.3 * few


def test_gradients_of_other_tensors_are_refused(narrow):
    merge = FreeMerge(make_plan(load(task_arithmetic(narrow)), threads=1))
    name = "model.norm.weight"
    for loss, part in (
        ({"x": losses(DType.FLOAT32)[name]}, "no tensor of the result"),
        ({"lm_head.weight": losses(DType.FLOAT32)[name]}, "give floats of shape"),
        ({name: losses(DType.FLOAT64)[name]}, "merged in float32"),
    ):
        with pytest.raises(UsageError, match=part):
            merge.gradient("start", loss)


@pytest.mark.parametrize(
    ("method", "parameter", "per"),
    [
        ("task_arithmetic", "weight", "expert"),
        ("task_arithmetic", "weight", ["expert", "tensor"]),
        ("task_arithmetic", "lambda", "layer"),
        ("ties", "lambda", "tensor"),
    ],
)
def test_numbers_that_values_are_multiplied_with_take_inner_products(
    narrow, monkeypatch, method, parameter, per
):
    given = {
        "weightsmith": 1,
        "merge_method": method,
        "base_model": str(narrow / "base"),
        "models": [{"model": str(narrow / name)} for name in "abc"],
        "parameters": {parameter: one(0, 1.5, 0.4, per)},
    }
    merge = FreeMerge(make_plan(load(given), threads=1))
    wanted = merge.gradient("start", losses(DType.FLOAT32))
    monkeypatch.delattr("weightsmith.engine.running.free_gradients._by_tiles")
    assert merge.gradient("start", losses(DType.FLOAT32)) == wanted
    assert any(wanted.values())
