"""Masks of task vectors: merged from files, free in recipes, evaluated for values, and differentiated."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file

from weightsmith import write_statistics
from weightsmith.engine import FreeMerge, make_plan, merge, replay, verify
from weightsmith.engine.planning.free_tracing import FreeTracer
from weightsmith.engine.running.free_planning import near_by
from weightsmith.errors import CompatibilityError, GradientError, RecipeError, UsageError
from weightsmith.graph import evaluate_model
from weightsmith.inspection import summarize_plan
from weightsmith.recipes import load, read_values
from weightsmith.tensors import DType, MemoryTensor

from .test_evaluating import SHAPES, one
from .test_free_gradients import as_tensor, losses, write

NAMES = list(SHAPES)
EVERY = sum(int(np.prod(shape)) for shape in SHAPES.values())
ELEMENTS = {"free_mask": [0, 1], "start": 1}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("masked"), np.float32)


def weights(root: Path, name: str) -> dict[str, np.ndarray]:
    return load_file(root / name / "model.safetensors")


def random_masks(seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {n: generator.random(size=s).astype(np.float32) for n, s in SHAPES.items()}


def written(path: Path, masks: dict[str, Any], of: Path) -> str:
    write_statistics(path, masks, kind="mask", of=of, data="drawn here", samples=1)
    return str(path)


def recipe(root: Path, statistics: list[Any], **more: Any) -> dict[str, Any]:
    return {
        "weightsmith": 1,
        "merge_method": "task_arithmetic",
        "base_model": str(root / "base"),
        "modify": ["mask"],
        "models": [
            {"model": str(root / name), "statistics": given}
            for name, given in zip("abcdefghijklmnop", statistics, strict=False)
        ],
        "parameters": {"weight": 0.75},
        **more,
    }


def merged(data: dict[str, Any], out: Path, **how: Any) -> dict[str, np.ndarray]:
    merge(load(data), out, **how)
    return load_file(out / "model.safetensors")


def expected(root: Path, masks: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """base + 0.75 sum_i m_i (theta_i - base), tensors without a mask being whole, in float64."""
    base = weights(root, "base")
    found = {name: base[name].astype(np.float64) for name in SHAPES}
    for model, own in zip("abc", masks, strict=False):
        for name, tensor in weights(root, model).items():
            delta = tensor.astype(np.float64) - base[name]
            found[name] = found[name] + 0.75 * np.asarray(own.get(name, 1.0), np.float64) * delta
    return found


def require_close(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in found.items():
        np.testing.assert_allclose(tensor, wanted[name], rtol=0, atol=2e-6)


def test_task_vectors_are_multiplied_by_masks_of_elements_rows_columns_and_tensors(root, tmp_path):
    """Weights without one stay as they are; the record says all that verify and replay need."""
    generator = np.random.default_rng(2)
    other = {
        NAMES[0]: generator.random(size=(24, 1)).astype(np.float32),
        NAMES[1]: generator.random(size=(1, 8)).astype(np.float16),
        NAMES[2]: np.array(0.25, np.float32),
        NAMES[3]: (generator.random(size=(12, 8)) < 0.5).astype(np.float32),
        NAMES[4]: generator.random(size=8).astype(np.float32),
    }
    own = {name: random_masks(1)[name] for name in other}
    files = [
        written(tmp_path / "a.safetensors", own, root / "a"),
        written(tmp_path / "b.safetensors", other, root / "b"),
    ]
    found = merged(recipe(root, files), tmp_path / "out")
    require_close(found, expected(root, [own, other]))
    assert verify(tmp_path / "out").ok
    replay(tmp_path / "out", tmp_path / "again")
    first, second = (tmp_path / name / "model.safetensors" for name in ("out", "again"))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("value", [0, 1])
def test_an_expert_keeps_every_bit_under_ones_and_is_the_base_under_zeros(root, tmp_path, value):
    how = {"merge_method": "linear", "parameters": {"weight": 1}}
    found = merged(recipe(root, [{"mask": value}], **how), tmp_path / "out")
    wanted = weights(root, "a" if value else "base")
    assert all((found[name] == wanted[name]).all() for name in SHAPES)


def test_one_mask_of_the_base_may_be_that_of_all_models(root, tmp_path):
    """As in Concrete subspace learning."""
    masks = random_masks(3)
    file = written(tmp_path / "shared.safetensors", masks, root / "base")
    require_close(
        merged(recipe(root, [file, file]), tmp_path / "out"), expected(root, [masks, masks])
    )


def test_masks_that_do_not_fit_are_refused(root, tmp_path):
    file = written(tmp_path / "a.safetensors", random_masks(1), root / "a")
    with pytest.raises(CompatibilityError, match="are of 'a'"):
        make_plan(load(recipe(root, [file, file])))
    with pytest.raises(RecipeError, match="modifier mask needs statistics of kind mask"):
        make_plan(load(recipe(root, [file, None])))
    turned = {NAMES[0]: np.ones((8, 24), np.float32)}
    file = written(tmp_path / "turned.safetensors", turned, root / "a")
    with pytest.raises(CompatibilityError, match=r"shape \[8, 24\], which does not broadcast"):
        make_plan(load(recipe(root, [file])))


@pytest.mark.parametrize(
    ("form", "part"),
    [
        ({"free_mask": [1, 0], "start": 0}, r"\[1, 0\] is no interval"),
        ({"free_mask": [0, 1], "start": 2}, "start: 2 lies outside of free_mask"),
        ({"free_mask": [0, 1]}, "the key 'start'"),
        ({"free_mask": [0, 1], "start": 1, "per": "layer"}, "element"),
        ({"mask": float("inf")}, "no finite number"),
        ([ELEMENTS, ELEMENTS], r"models\[0\] has two free masks; leave one out"),
        (ELEMENTS | {"match": {"role": "router"}}, r"models\[0\].mask: its `match` selects no"),
    ],
)
def test_forms_of_masks_that_mean_nothing_are_refused(root, form, part):
    with pytest.raises(RecipeError, match=part):
        make_plan(load(recipe(root, [form])))


def test_a_free_mask_is_listed_with_its_count_and_refused_without_a_file(root, tmp_path):
    """The file takes the place of the mask, so what is on record is an ordinary recipe."""
    rows = {"free_mask": [0, 1], "start": 0.5, "per": "row"}
    data = recipe(root, [ELEMENTS, [rows]])
    found = {
        row.name: (row.tensors, row.count) for row in summarize_plan(make_plan(load(data))).free
    }
    assert found == {
        "models[0].mask": (len(SHAPES), EVERY),
        "models[1].mask": (len(SHAPES), sum(shape[0] for shape in SHAPES.values())),
    }
    with pytest.raises(RecipeError, match=r"has 2 free masks without a value, .*models\[0\].mask"):
        merge(load(data), tmp_path / "out")
    own, other = (
        random_masks(1),
        {n: m[..., :1] if m.ndim > 1 else m for n, m in random_masks(2).items()},
    )
    files = [
        written(tmp_path / "a.safetensors", own, root / "a"),
        written(tmp_path / "b.safetensors", other, root / "b"),
    ]
    values = {f"models[{i}].mask": Path(file).name for i, file in enumerate(files)}
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    filled = merged(data, tmp_path / "out", values=read_values(tmp_path / "values.yaml"))
    require_close(filled, expected(root, [own, other]))
    assert verify(tmp_path / "out").ok
    started = merged(data, tmp_path / "started", values="start")
    require_close(started, expected(root, [{}, dict.fromkeys(SHAPES, np.array(0.5))]))
    assert verify(tmp_path / "started").ok


def test_values_of_free_masks_are_files_within_their_bounds(root, tmp_path):
    data = recipe(root, [{"free_mask": [0, 0.5], "start": 0}])
    high = written(tmp_path / "high.safetensors", random_masks(1), root / "a")
    ones = {name: np.ones(shape, np.float32) for name, shape in SHAPES.items()}
    other = tmp_path / "fisher.safetensors"
    write_statistics(other, ones, kind="fisher", of=root / "a", data="drawn here", samples=1)
    for given, part in (
        ({}, "'models\\[0\\].mask' has no value; name a safetensors file"),
        ({"models[0].mask": 0.5}, "cannot be 0.5"),
        ({"models[0].mask": high}, r"lies in \[0, 0.5\], but .* has 0"),
        ({"models[0].mask": str(other)}, "holds statistics of kind fisher"),
        ({"models[0].mask": high, "x": 1}, "no free number 'x'"),
    ):
        with pytest.raises(RecipeError, match=part):
            make_plan(load(data), values=given)


def test_evaluations_have_the_bytes_of_merges_and_compute_what_a_mask_is_in(root, tmp_path):
    data = recipe(root, [ELEMENTS | {"match": {"role": "mlp"}}, {"mask": 0.25}])
    data["models"][1]["statistics"] = {"mask": 0.25, "match": {"role": "mlp"}}
    merging = FreeMerge(make_plan(load(data), threads=1))
    first = merging.evaluate("start")
    assert first.keys() == SHAPES.keys()
    assert not merging.evaluate("start")
    name = "model.layers.1.mlp.up_proj.weight"
    masks = {n: m for n, m in random_masks(4).items() if "mlp" in n}
    merging.set_mask("models[0].mask", masks)
    found = first | merging.evaluate("start")
    assert set(masks) == {n for n in SHAPES if "mlp" in n}
    assert merging.computed == len(SHAPES) + len(masks)
    file = written(tmp_path / "a.safetensors", masks, root / "a")
    wanted = merged(data, tmp_path / "out", values={"models[0].mask": file})
    for tensor, array in wanted.items():
        assert bytes(found[tensor].data) == array.tobytes()
    for given, part in (
        ({"x": masks[name]}, "has no tensor 'x'"),
        ({name: masks[name][:1]}, r"give float32 of shape \[12, 8\]"),
    ):
        with pytest.raises(UsageError, match=part):
            merging.set_mask("models[0].mask", given)
    with pytest.raises(RecipeError, match="lies in"):
        merging.set_mask("models[0].mask", {name: masks[name] + 1})
    with pytest.raises(UsageError, match="no free mask 'x'"):
        merging.set_mask("x", masks)


def autograd(plan, masks: dict[str, dict[str, torch.Tensor]], weights) -> dict[str, torch.Tensor]:
    """Gradients with respect to the masks through the graph of the whole model in memory."""
    values = {name: number.start for name, number in plan.free.numbers.items()}
    tracer = FreeTracer()
    tracer.values, tracer.nearby = values, near_by(plan.free.numbers, values)
    resolved = plan.free.resolved_for(values, tracer.nearby).resolved
    outputs, sources, known = {}, {}, {}
    for output in resolved.outputs:
        traced = tracer.trace(replace(output))
        outputs[output.name] = traced.output
        known |= traced.numbers
        sources[output.name] = [
            masks[leaf.checkpoint][leaf.tensor].broadcast_to(output.shape)
            if leaf.checkpoint in masks
            else as_tensor(resolved.checkpoints[leaf.checkpoint].tensors[leaf.tensor])
            for leaf in traced.sources
        ]
    made = evaluate_model(outputs, sources, known=known)
    sum((made[n].double() * as_tensor(w)).sum() for n, w in weights.items()).backward()
    return masks


ROWS, COLUMNS = ({"free_mask": [0, 1], "start": 0.5, "per": per} for per in ("row", "column"))
TENSORS = {"free_mask": [0, 2], "start": 1, "per": "tensor"}
GRADIENTS: dict[str, dict[str, Any]] = {
    "a sum": {},
    "with free numbers beside": {"parameters": {"weight": one(0, 2, 1, ["expert", "tensor"])}},
    "an average of the weights": {"merge_method": "linear"},
    "elections": {"merge_method": "ties", "parameters": {"weight": 0.5, "density": 0.6}},
    "norms of what is masked": {"merge_method": "nuslerp", "parameters": {"weight": 0.5}},
    "matrices": {"merge_method": "iso_c", "parameters": {}},
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_streamed_gradients_of_masks_are_those_of_autograd_through_the_merged_graph(root, name):
    third = [] if "norms" in name else [COLUMNS if name == "a sum" else TENSORS]
    data = recipe(root, [ELEMENTS, ROWS, *third]) | GRADIENTS[name]
    plan = make_plan(load(data), threads=1)
    merging, weighed = FreeMerge(plan), losses(DType.FLOAT32)
    generator = np.random.default_rng(8)
    leaves: dict[str, dict[str, torch.Tensor]] = {}
    for mask in merging.masks.values():
        given = {
            n: generator.uniform(0.2, 0.9, shape).astype(np.float32)
            for n, shape in mask.shapes.items()
        }
        merging.set_mask(mask.name, given)
        leaves[mask.name] = {n: torch.tensor(x, requires_grad=True) for n, x in given.items()}
    autograd(plan, leaves, weighed)
    for mask, found in merging.mask_gradient("start", weighed).items():
        assert any(float(as_tensor(g).abs().max()) > 1e-3 for g in found.values())
        for tensor, gradient in found.items():
            torch.testing.assert_close(
                as_tensor(gradient), leaves[mask][tensor].grad, rtol=1e-4, atol=2e-5
            )


def test_masks_at_one_have_the_gradient_of_sums_dl_dtheta_times_tau(root):
    merging = FreeMerge(make_plan(load(recipe(root, [ELEMENTS]))))
    weighed = losses(DType.FLOAT32)
    (found,) = merging.mask_gradient("start", weighed).values()
    base, a = weights(root, "base"), weights(root, "a")
    for name, loss in weighed.items():
        wanted = 0.75 * as_tensor(loss).numpy() * (a[name].astype(np.float64) - base[name])
        np.testing.assert_allclose(as_tensor(found[name]), wanted, rtol=1e-5, atol=1e-6)


def test_tensors_whose_gradient_is_left_out_count_as_zero(root):
    merging = FreeMerge(make_plan(load(recipe(root, [ELEMENTS, ROWS]))))
    name = NAMES[1]
    found = merging.mask_gradient("start", {name: losses(DType.FLOAT32)[name]})
    for own in found.values():
        assert {n for n, g in own.items() if as_tensor(g).any()} == {name}
    with pytest.raises(UsageError, match="no free mask 'x'"):
        merging.mask_gradient("start", {}, ["x"])


def test_statistics_of_the_model_that_depend_on_masks_have_no_streamed_gradient(root):
    data = recipe(root, [ELEMENTS, ELEMENTS], then=[{"lines": {}}])
    merging = FreeMerge(make_plan(load(data)))
    with pytest.raises(GradientError, match="statistic of the whole model"):
        merging.mask_gradient("start", losses(DType.FLOAT32))


def peak_bytes(root: Path, experts: int) -> int:
    data = recipe(root, [ELEMENTS] * experts)
    merging = FreeMerge(make_plan(load(data), threads=1, memory_bytes=2**27))
    weighed = {"big": MemoryTensor.of("big", DType.FLOAT32, np.ones((500, 1000), np.float32))}
    merging.mask_gradient("start", weighed)
    tracemalloc.start()
    try:
        merging.mask_gradient("start", weighed)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_number_of_experts(tmp_path):
    root = write(tmp_path, np.float32, experts=16, shapes={"big": (500, 1000)})
    few, many = (peak_bytes(root, count) for count in (2, 16))
    assert few > 2**20
    assert many < 1.5 * few
