"""A merge with free numbers in a live network: what merging into a folder and loading gives, computed in place."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import weightsmith
from weightsmith.errors import AssertionFailed, CheckpointError, RecipeError, UsageError
from weightsmith.live import LiveMerge, load_model
from weightsmith.tensors import MemoryTensor, read_bytes

from .architectures import ARCHITECTURES
from .test_swap import assert_states, states


def recipe(folders: list[Path], per: str | None = "layer", **more: Any) -> dict[str, Any]:
    number = {"free": [-1, 1.5], "start": 0.3} | ({"per": per} if per else {})
    return {
        "weightsmith": 1,
        "merge_method": "task_arithmetic",
        "base_model": str(folders[0]),
        "models": [{"model": str(folder)} for folder in folders[1:]],
        "parameters": {"lambda": number},
        **more,
    }


def plan_of(*given: Any, **options: Any) -> Any:
    return weightsmith.plan(recipe(*given, **options), threads=1)


def three(saved, name: str) -> list[Path]:
    return [saved(name, seed) for seed in range(3)]


def changed(merge: LiveMerge, word: str, value: float) -> dict[str, float]:
    return {name: value if word in name else one for name, one in merge.values.items()}


def merged(merge: LiveMerge, given: dict[str, Any], out: Path) -> dict[str, torch.Tensor]:
    weightsmith.merge(given, out, values=merge.values, threads=1)
    return states(load_model(out, dtype=str(merge.model.dtype).removeprefix("torch.")))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("family vision", "float32"),
        ("llama tied", "float32"),
        ("llama", "bfloat16"),
        ("mixtral", "float32"),
        ("mixtral", "bfloat16"),
    ],
)
def test_weights_are_those_of_a_merge_into_a_folder_that_is_loaded(saved, tmp_path, name, dtype):
    given = recipe(three(saved, name))
    merge = LiveMerge(weightsmith.plan(given, threads=1), dtype=dtype)
    places = {n: p.data_ptr() for n, p in merge.model.module.named_parameters()}
    assert_states(states(merge.model), merged(merge, given, tmp_path / "start"))
    touched = merge.set(changed(merge, "layer 1", 0.9))
    assert touched
    assert all(".1." in tensor for tensor in touched)
    assert_states(states(merge.model), merged(merge, given, tmp_path / "changed"))
    assert {n: p.data_ptr() for n, p in merge.model.module.named_parameters()} == places


def test_a_number_per_expert_of_a_mixture_leaves_its_neighbours_as_they_are(saved, tmp_path):
    given = recipe(three(saved, "mixtral"), "tensor")
    merge = LiveMerge(weightsmith.plan(given, threads=1))
    (name,) = merge.set(changed(merge, "layers.1.block_sparse_moe.experts.2.w1", 0.8))
    assert name == "model.layers.1.block_sparse_moe.experts.2.w1.weight"
    assert_states(states(merge.model), merged(merge, given, tmp_path / "out"))


@pytest.mark.parametrize("differ", [0, 1])
def test_a_head_that_is_stored_beside_its_embedding_is_what_loading_makes_of_it(
    saved, tmp_path, differ
):
    folders = []
    for seed, folder in enumerate(three(saved, "llama tied")):
        folders.append(tmp_path / str(seed))
        shutil.copytree(folder, folders[-1])
        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + differ * seed
        save_file(tensors, folders[-1] / "model.safetensors", metadata={"format": "pt"})
    given = recipe(folders, "tensor", **({"untie": True} if differ else {}))
    merge = LiveMerge(weightsmith.plan(given, threads=1))
    merge.set(changed(merge, "embed_tokens", 0.8))
    assert_states(states(merge.model), merged(merge, given, tmp_path / "out"))
    module = merge.model.module
    assert (module.lm_head.weight is module.model.embed_tokens.weight) != differ


def test_nothing_is_held_beside_the_network(saved, monkeypatch):
    made: list[str] = []
    empty = MemoryTensor.empty

    def noted(name: str, *given: Any) -> MemoryTensor:
        made.append(name)
        return empty(name, *given)

    monkeypatch.setattr(MemoryTensor, "empty", noted)
    merge = LiveMerge(plan_of(three(saved, "llama")))
    merge.set(changed(merge, "layer 0", 0.9))
    assert not made
    assert not [tensor for tensor in merge.model.source.tensors.values() if tensor.held]


def test_a_gradient_is_that_of_finite_differences(saved):
    batch = ARCHITECTURES["mixtral"].batch()
    merge = LiveMerge(plan_of(three(saved, "mixtral"), "tensor"))

    def ask(model: Any) -> torch.Tensor:
        return model.loss(batch, batch["input_ids"])

    values = dict(merge.values)
    loss, gradient = merge.gradient(ask)
    assert not any(parameter.requires_grad for parameter in merge.model.module.parameters())
    assert gradient.keys() == values.keys()
    largest = sorted(gradient, key=lambda name: -abs(gradient[name]))[:2]
    for name in [*largest, "lambda[model.layers.1.block_sparse_moe.experts.2.w1.weight]"]:
        found = []
        for step in (0.01, -0.01):
            merge.set({**values, name: values[name] + step})
            with torch.no_grad():
                found.append(float(ask(merge.model)))
        assert gradient[name] == pytest.approx((found[0] - found[1]) / 0.02, rel=0.02, abs=1e-4)
    assert loss == pytest.approx(sum(found) / 2, rel=1e-3)


def test_a_refused_value_or_assertion_leaves_the_network_as_it_was(saved):
    folders = three(saved, "llama")
    clause = {"norm_ratio": {"low": 0.5, "high": 1.5, "match": {"glob": "*.up_proj.weight"}}}
    given = recipe(folders, None, **{"assert": [clause]})
    merge = LiveMerge(weightsmith.plan(given, threads=1))
    before = states(merge.model)
    with pytest.raises(RecipeError, match="lies in"):
        merge.set({"lambda": 3.0})
    with pytest.raises(AssertionFailed, match="norm of its reference"):
        merge.set({"lambda": 1.5})
    assert_states(states(merge.model), before)
    merge.model.logits(ARCHITECTURES["llama"].batch())
    assert merge.values == {"lambda": 0.3}
    merge.set({"lambda": 0.0})
    assert_states(states(merge.model), states(load_model(folders[0])))


def test_a_merge_that_breaks_off_leaves_a_network_that_does_not_run_until_the_next(saved, tmp_path):
    folders = three(saved, "llama")
    broken = tmp_path / "broken"
    shutil.copytree(folders[1], broken)
    file = broken / "model.safetensors"
    merge = LiveMerge(plan_of([folders[0], broken, folders[2]], None))
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError):
        merge.set({"lambda": 0.5})
    with pytest.raises(UsageError, match="not in memory as a whole"):
        merge.model.logits(ARCHITECTURES["llama"].batch())
    shutil.copy(folders[1] / "model.safetensors", file)
    again = LiveMerge(plan_of([folders[0], broken, folders[2]], None), {"lambda": 0.5})
    again.model.logits(ARCHITECTURES["llama"].batch())


def masked(folders: list[Path], **more: Any) -> dict[str, Any]:
    mask = {"free_mask": [0, 1], "start": 1}
    given = recipe(folders, **more) | {"modify": ["mask"]}
    given["models"] = [entry | {"statistics": mask} for entry in given["models"]]
    return given


def drawn_masks(merge: LiveMerge, seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    generator = np.random.default_rng(seed)
    return {
        name: {n: generator.random(s).astype(np.float32) for n, s in mask.shapes.items()}
        for name, mask in merge.masks.items()
    }


def numbers(tensor: Any) -> bytes:
    return bytes(read_bytes(tensor, 0, tensor.numel))


def test_masks_that_are_given_are_in_the_network_and_ones_give_it_back(saved, tmp_path):
    folders = three(saved, "mixtral")
    merge = LiveMerge(weightsmith.plan(masked(folders), threads=1))
    before = states(merge.model)
    masks = drawn_masks(merge)
    merge.set(merge.values, masks=masks)
    # base + 0.3 sum_i m_i (theta_i - base), by hand.
    base, *experts = (load_file(folder / "model.safetensors") for folder in folders)
    out = tmp_path / "out"
    shutil.copytree(folders[0], out)
    wanted = {}
    for name, own in base.items():
        wanted[name] = own.double()
        for mask, expert in zip(masks.values(), experts, strict=True):
            factor = torch.from_numpy(mask[name]).double()
            wanted[name] = wanted[name] + 0.3 * factor * (expert[name].double() - own.double())
    save_file({n: t.float() for n, t in wanted.items()}, out / "model.safetensors")
    network = states(load_model(out))
    for name, tensor in states(merge.model).items():
        torch.testing.assert_close(tensor, network[name], rtol=0, atol=1e-6)
    ones = {n: np.ones(s, np.float32) for n, s in merge.masks["models[0].mask"].shapes.items()}
    one = "model.layers.1.block_sparse_moe.experts.2.w1.weight"
    assert one in merge.set_mask("models[1].mask", {one: ones[one]})
    for name in merge.masks:
        merge.set_mask(name, ones)
    assert_states(states(merge.model), before)


def test_masks_that_are_refused_leave_network_and_masks_as_they_were(saved):
    clause = {"norm_ratio": {"low": 0.1, "high": 0.8, "match": {"glob": "*.up_proj.weight"}}}
    merge = LiveMerge(
        weightsmith.plan(masked(three(saved, "llama"), **{"assert": [clause]}), threads=1)
    )
    batch = ARCHITECTURES["llama"].batch()

    def ask(model: Any) -> torch.Tensor:
        return model.loss(batch, batch["input_ids"])

    before, given = states(merge.model), drawn_masks(merge)
    loss, gradient = merge.mask_gradient(ask)
    zeros = {name: {n: 0 * x for n, x in own.items()} for name, own in given.items()}
    with pytest.raises(AssertionFailed, match="norm of its reference"):
        merge.set(merge.values, masks=zeros)
    first, second = given
    with pytest.raises(UsageError, match="has no tensor 'x'"):
        merge.set(merge.values, masks={first: given[first], second: {"x": np.zeros(1, np.float32)}})
    with pytest.raises(RecipeError, match="lies in"):
        merge.set(dict.fromkeys(merge.values, 9.0), masks=given)
    assert_states(states(merge.model), before)
    again, same = merge.mask_gradient(ask)
    assert again == loss
    for name, own in gradient.items():
        for tensor, found in own.items():
            assert numbers(found) == numbers(same[name][tensor])
    merge.set(merge.values)
    assert_states(states(merge.model), before)


def test_a_gradient_of_masks_is_that_of_finite_differences(saved):
    batch = ARCHITECTURES["mixtral"].batch()
    merge = LiveMerge(weightsmith.plan(masked(three(saved, "mixtral")), threads=1))

    def ask(model: Any) -> torch.Tensor:
        return model.loss(batch, batch["input_ids"])

    masks = {n: {t: 0.8 * x + 0.1 for t, x in own.items()} for n, own in drawn_masks(merge).items()}
    merge.set(merge.values, masks=masks)
    loss, gradient = merge.mask_gradient(ask, ["models[1].mask"])
    assert gradient.keys() == {"models[1].mask"}
    (found,) = gradient.values()
    generator = np.random.default_rng(1)
    name = "model.layers.1.block_sparse_moe.experts.2.w1.weight"
    own = masks["models[1].mask"][name]
    away = generator.choice([-0.1, 0.1], own.shape).astype(np.float32)
    losses = []
    for sign in (1, -1):
        merge.set_mask("models[1].mask", {name: own + sign * away})
        with torch.no_grad():
            losses.append(float(ask(merge.model)))
    slope = np.frombuffer(numbers(found[name]), np.float32).reshape(own.shape)
    expected = float((slope.astype(np.float64) * away).sum())
    assert (losses[0] - losses[1]) / 2 == pytest.approx(expected, rel=0.02, abs=1e-5)
    assert loss == pytest.approx(sum(losses) / 2, rel=1e-3)
