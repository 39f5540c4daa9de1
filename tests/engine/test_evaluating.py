"""Merges evaluated for values of free numbers have the bytes of merges of filled recipes, and compute what changed."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from weightsmith.checkpoints.formats.statistics_writer import write_statistics
from weightsmith.engine import FreeMerge, make_plan, merge_in_memory
from weightsmith.errors import AssertionFailed, RecipeError
from weightsmith.methods import REQUIRED, Base, MeasuredOn, registry
from weightsmith.recipes import fill, load

SHAPES = {
    "model.embed_tokens.weight": (24, 8),
    **{f"model.layers.{i}.self_attn.q_proj.weight": (8, 8) for i in range(2)},
    **{f"model.layers.{i}.mlp.up_proj.weight": (12, 8) for i in range(2)},
    **{f"model.layers.{i}.input_layernorm.weight": (8,) for i in range(2)},
    "model.norm.weight": (8,),
    "lm_head.weight": (24, 8),
}
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "vocab_size": 24,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
# Without numbers among their parameters, or with an output of their own.
WITHOUT = {"arcee_fusion", "emr", "passthrough", "soup", "wma", "repair"}
# Kinds of the statistics that methods go by.
MEASURED = {
    "aim": "channels:input_magnitude",
    "fisher": "fisher",
    "ota": "adam",
    "rcp": "gradients",
    "regmean": "gram",
    "sens": "gradients:absolute",
    "tatr": "gradients:absolute",
}


@pytest.fixture(scope="session")
def models(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("models")
    generator = np.random.default_rng(0)
    base = {n: generator.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}
    for k, name in enumerate(("base", "a", "b", "c")):
        (root / name).mkdir()
        changed = {n: x + 0.1 * k * generator.normal(size=x.shape) for n, x in base.items()}
        tensors = {n: x.astype(np.float32) for n, x in changed.items()}
        save_file(tensors, root / name / "model.safetensors", metadata={"format": "pt"})
        (root / name / "config.json").write_text(json.dumps(CONFIG))
    return root


def number(parameter: registry.Parameter) -> dict[str, Any] | None:
    """A free number for a parameter around its default."""
    start = 0.5 if parameter.default is REQUIRED else parameter.default
    if parameter.kind not in (int, float) or start is None:
        return None
    if parameter.kind is int:
        low, high = (start or 1), (start or 1) + 2
    elif (parameter.low, parameter.high) == (0.0, 1.0):
        low, high = 0.1, 0.9
    else:
        low, high = sorted((start * 0.5, start * 1.5)) if start else (0.0, 1.0)
    low = low if parameter.low is None else max(low, parameter.low)
    high = high if parameter.high is None else min(high, parameter.high)
    return {"free": [low, high], "start": min(max(start, low), high)} if low < high else None


def statistics_of(model: Path, measured: str, over: str) -> str:
    """A file of made-up statistics of a model over the data of one."""
    kind, _, word = measured.partition(":")
    path = model.parent / f"{model.name}.{over}.{kind}{word}.safetensors"
    generator = np.random.default_rng(ord(over[0]))
    tensors: dict[str, Any] = {}
    for name, shape in SHAPES.items():
        is_matrix = len(shape) == 2 and ".layers." in name
        if word == "absolute":
            tensors[f"{name}::{word}"] = generator.exponential(size=shape).astype(np.float32)
        elif word and is_matrix:
            tensors[f"{name}::{word}"] = generator.exponential(size=shape[1]).astype(np.float32)
        elif kind == "gradients":
            tensors[name] = list(generator.normal(size=(3, *shape)).astype(np.float32))
        elif kind in ("fisher", "adam"):
            tensors[name] = generator.exponential(size=shape).astype(np.float32)
        elif kind == "gram" and is_matrix:
            inputs = generator.normal(size=(50, shape[-1])).astype(np.float32)
            tensors[name] = inputs.T @ inputs
    if not path.exists():
        write_statistics(path, tensors, kind=kind, of=model, data="made up", samples=16)
    return str(path)


def recipe_of(spec: registry.MethodSpec, root: Path) -> dict[str, Any]:
    """A recipe with every number of a method free."""
    count = spec.experts[0] if spec.experts[1] is not None else max(2, spec.experts[0])
    parameters: dict[str, Any] = {}
    for key, parameter in spec.parameters.items():
        made = number(parameter)
        if made is not None:
            parameters[key] = made | ({"per": "expert"} if parameter.per_expert else {})
        elif parameter.default is REQUIRED:
            parameters[key] = 0.5
    base = {} if spec.base is Base.IGNORED else {"base_model": str(root / "base")}
    listed = [{"model": str(root / name)} for name in "abc"[:count]]
    if spec.name in MEASURED and spec.measured_on is MeasuredOn.BASE:
        listed.append({"model": str(root / "base")})
    for model in listed[-1:] if spec.measured_on is MeasuredOn.BASE else listed:
        if spec.name in MEASURED:
            own = Path(model["model"])
            of = own if spec.measured_on is MeasuredOn.EXPERTS else root / "base"
            model["statistics"] = statistics_of(of, MEASURED[spec.name], own.name)
    return {
        "weightsmith": 1,
        "merge_method": spec.name,
        "models": listed,
        "parameters": parameters,
        **base,
    }


def random_values(plan, rng: random.Random) -> dict[str, float]:
    """Values within the bounds, now and then 0 or 1, where methods do something else."""
    found = {}
    for name, one in plan.free.numbers.items():
        value = rng.choice([rng.uniform(one.low, one.high)] * 6 + [0.0, 1.0, 1.0])
        value = min(max(value, one.low), one.high)
        is_whole = float(one.low).is_integer() and one.high - one.low == 2
        found[name] = float(round(value)) if is_whole else value
    return found


def assert_same(data: dict[str, Any], rounds: int = 4, **options: Any) -> FreeMerge:
    recipe = load(data)
    plan = make_plan(recipe, threads=1, **options)
    evaluation = FreeMerge(plan)
    rng = random.Random(data.get("merge_method", "expression"))
    held = {}
    for _ in range(rounds):
        values = random_values(plan, rng)
        filled = make_plan(fill(recipe, values), threads=1, **options)
        if filled.errors:
            with pytest.raises(RecipeError):
                evaluation.evaluate(values)
            continue
        held |= evaluation.evaluate(values)
        merged = merge_in_memory(filled).tensors
        assert held.keys() == merged.keys()
        for name, tensor in merged.items():
            assert bytes(tensor.data) == bytes(held[name].data), (name, values)
    return evaluation


@pytest.mark.parametrize("name", sorted(set(registry.names()) - WITHOUT))
def test_every_method_gives_the_bytes_of_the_filled_recipe(models, name):
    assert_same(recipe_of(registry.get(name), models))


def ties(models: Path, **parameters: Any) -> dict[str, Any]:
    return {
        "weightsmith": 1,
        "merge_method": "ties",
        "base_model": str(models / "base"),
        "models": [{"model": str(models / name)} for name in "ab"],
        "parameters": parameters,
    }


def one(low: float, high: float, start: float, per: Any = None) -> dict[str, Any]:
    return {"free": [low, high], "start": start} | ({"per": per} if per else {})


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_numbers_of_layers_tensors_modifiers_and_steps_do_too(models, backend):
    data = ties(
        models,
        **{"lambda": one(0, 1.5, 1, "layer"), "weight": one(0, 2, 1, ["expert", "tensor"])},
        density=[0.5, one(0.1, 0.9, 0.5)],
    )
    data["modify"] = [{"clip": {"limit": one(1, 3, 2)}}]
    data["then"] = [{"lines": {"alpha": one(0, 1, 0.3)}}]
    assert_same(data, backend=backend)


def test_expressions_do_where_a_coefficient_vanishes_too(models):
    text = (
        "base + free(0, 1, start=1) * (a - base) + ties(base, a, b, weight=free(0, 1, start=1, per=expert), "
        "lambda=free(-1, 1, start=0.5)) - base"
    )
    checkpoints = {name: str(models / name) for name in ("base", "a", "b")}
    assert_same({"weightsmith": 1, "expression": text, "checkpoints": checkpoints}, rounds=12)


def test_recipes_inside_a_recipe_do(models):
    inner = ties(models, density=one(0.2, 0.8, 0.5), **{"lambda": one(0, 1, 0.5, "role")})
    outer = {
        "weightsmith": 1,
        "merge_method": "slerp",
        "base_model": str(models / "base"),
        "models": [{"model": inner}],
        "parameters": {"t": one(0, 1, 0.5)},
    }
    assert_same(outer)


def test_what_stays_the_same_is_not_computed_again(models):
    plan = make_plan(load(ties(models, **{"lambda": one(0, 2, 1, "layer")})), threads=1)
    evaluation = FreeMerge(plan)
    assert set(evaluation.evaluate("start")) == set(SHAPES)
    values = dict.fromkeys(plan.free.numbers, 1.0)
    for step in range(10):
        values["lambda[layer 1]"] = 0.5 + 0.1 * step
        changed = evaluation.evaluate(values)
        assert set(changed) == {name for name in SHAPES if ".layers.1." in name}
    assert evaluation.computed == len(SHAPES) + 10 * 3
    assert evaluation.evaluate(values) == {}


def test_a_number_in_statistics_of_the_model_touches_all_that_go_by_them(models):
    data = ties(models, density=one(0.1, 0.9, 0.5))
    data["rules"] = [{"match": {"role": "norm"}, "merge_method": "linear", "parameters": {}}]
    plan = make_plan(load(data), threads=1)
    evaluation = FreeMerge(plan)
    evaluation.evaluate("start")
    changed = evaluation.evaluate(dict.fromkeys(plan.free.numbers, 0.25))
    assert set(changed) == {name for name in SHAPES if "norm" not in name}


def test_graphs_are_built_once_for_all_values(models):
    data = ties(models, **{"lambda": one(0, 2, 1.5), "weight": one(0.2, 2, 0.5, "expert")})
    plan = make_plan(load(data), threads=1)
    evaluation = FreeMerge(plan)
    evaluation.evaluate("start")
    built = evaluation._planner._tracer.traces
    for step in range(5):
        evaluation.evaluate(dict.fromkeys(plan.free.numbers, 0.3 + 0.1 * step))
    assert evaluation._planner._tracer.traces == built
    assert not evaluation.bound


def test_assertions_are_checked_of_what_was_computed(models):
    clause = {"norm_ratio": {"low": 0.5, "high": 1.02, "match": {"layers": [1, 2]}}}
    data = ties(models, **{"lambda": one(0, 9, 0, "layer")}) | {"assert": [clause]}
    evaluation = FreeMerge(make_plan(load(data), threads=1))
    values = dict.fromkeys(evaluation.numbers, 0.0)
    evaluation.evaluate(values)
    evaluation.evaluate(values | {"lambda[layer 0]": 9.0})
    with pytest.raises(AssertionFailed, match="norm of its reference"):
        evaluation.evaluate(values | {"lambda[layer 0]": 9.0, "lambda[layer 1]": 9.0})
    assert evaluation.evaluate(values | {"lambda[layer 0]": 9.0}) == {}


def test_what_assertions_compare_with_may_have_free_numbers(models):
    inner = {
        "weightsmith": 1,
        "merge_method": "task_arithmetic",
        "base_model": str(models / "base"),
        "models": [{"model": str(models / "a")}],
        "parameters": {"lambda": one(0, 2, 1)},
    }
    data = {
        "weightsmith": 1,
        "merge_method": "linear",
        "models": [
            {"model": inner, "parameters": {"weight": 1.0}},
            {"model": str(models / "b"), "parameters": {"weight": one(0, 1, 0)}},
        ],
        "assert": [{"equal": {"to": inner}}],
    }
    evaluation = FreeMerge(make_plan(load(data), threads=1))
    used, weight, compared = evaluation.numbers
    for number in (0.5, 0.25):
        evaluation.evaluate({used: number, weight: 0.0, compared: number})
    for values in ((0.25, 0.5, 0.25), (0.25, 0.0, 0.5)):
        with pytest.raises(AssertionFailed, match="differs"):
            evaluation.evaluate(dict(zip((used, weight, compared), values, strict=True)))


def test_a_plan_without_free_numbers_is_refused(models):
    with pytest.raises(RecipeError, match="free numbers"):
        FreeMerge(make_plan(load(ties(models)), threads=1))


def test_a_failed_evaluation_leaves_the_last_one_as_it_was(models):
    plan = make_plan(load(ties(models, **{"lambda": one(0, 2, 1)})), threads=1)
    evaluation = FreeMerge(plan)
    evaluation.evaluate("start")
    with pytest.raises(RecipeError, match="lies in"):
        evaluation.evaluate({"lambda": 3.0})
    assert evaluation.evaluate({"lambda": 1.0}) == {}
