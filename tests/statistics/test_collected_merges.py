"""From collected statistics to merges by gradients and activations, against numpy on the files."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file

import weightsmith
from weightsmith.errors import UsageError
from weightsmith.inspection import explain_tensor
from weightsmith.statistics import Sample, Samples, logit_distances, next_tokens

MODEL = "llama"
DOWN = "model.layers.1.mlp.down_proj.weight"


def texts(seed):
    drawn = torch.randint(3, 48, (4, 7), generator=torch.Generator().manual_seed(seed))
    items = [Sample({"input_ids": row}, row[1:], classes=48) for row in drawn]
    return Samples(f"numbers {seed}", items, "log-likelihood", next_tokens, is_text=True)


@pytest.fixture(scope="module")
def world(saved, tmp_path_factory):
    """A base, two experts, and statistics of all three."""
    root = tmp_path_factory.mktemp("world")
    shutil.copytree(saved(MODEL), root / "base")
    for number in (1, 2):
        shutil.copytree(saved(MODEL), root / f"e{number}")
        generator = torch.Generator().manual_seed(number)
        tensors = {
            n: t + 0.05 * torch.randn(t.shape, generator=generator)
            for n, t in load_torch(root / "base" / "model.safetensors").items()
        }
        save_file(tensors, root / f"e{number}" / "model.safetensors", {"format": "pt"})
        data = texts(number)
        made = {"data": data, "out": root / f"e{number}.safetensors"}
        weightsmith.collect("gradients,channels", root / f"e{number}", **made)
        weightsmith.collect(
            "gradients", root / "base", data=data, out=root / f"base{number}.safetensors"
        )
    weightsmith.collect(
        "channels", root / "base", data=texts(0), out=root / "base.channels.safetensors"
    )
    return root


def merged(world, tmp_path, method, kinds=(), **more):
    models = [
        {"model": str(world / f"e{i}")}
        | ({"statistics": [str(world / kind.format(i)) for kind in kinds]} if kinds else {})
        for i in (1, 2)
    ]
    models += more.pop("models", [])
    base = {"base_model": str(world / "base"), "out_dtype": "float32"}
    recipe = {"weightsmith": 1, "merge_method": method, "models": models} | base | more
    weightsmith.merge(recipe, tmp_path / "out")
    assert weightsmith.verify(tmp_path / "out", recompute=2).ok
    return tensors(tmp_path / "out")


def tensors(folder):
    found = load_file(folder / "model.safetensors")
    return {n: t.astype(np.float64) for n, t in found.items()}


def near(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_step_relaxes_a_merge_by_the_activations_of_the_base(world, tmp_path):
    step = {"aim": {"omega": 0.2}, "statistics": str(world / "base.channels.safetensors")}
    found = merged(world, tmp_path, "linear", then=[step])
    base, one, two = (tensors(world / name) for name in ("base", "e1", "e2"))
    channels = load_file(world / "base.channels.safetensors")
    for name, start in base.items():
        change = (one[name] + two[name]) / 2 - start
        activity = channels.get(f"{name}::input_magnitude")
        if activity is not None:
            change = change * (1 - 0.8 * activity / activity.max())
        near(found[name], start + change)
    assert f"{DOWN}::input_magnitude" in channels
    assert "model.norm.weight::input_magnitude" in channels


def test_the_plan_says_what_a_step_and_a_modifier_go_by(world):
    models = [
        {"model": str(world / f"e{i}"), "statistics": str(world / f"e{i}.channels.safetensors")}
        for i in (1, 2)
    ]
    step = {"aim": {}, "statistics": str(world / "base.channels.safetensors")}
    how = {"modify": [{"wanda": {"density": 0.5}}, "clip"], "then": [step]}
    recipe = {"weightsmith": 1, "merge_method": "ties", "models": models, **how}
    plan = weightsmith.plan(recipe | {"base_model": str(world / "base")})
    aim = explain_tensor(plan, DOWN).formula
    ((own,), wanda) = aim["statistics"], aim["experts"][0]["of"]["modifiers"][0]
    assert own["checkpoint"] == str(world / "base.channels.safetensors")
    assert own["tensor"] == f"{DOWN}::input_magnitude"
    assert [found["checkpoint"] for found in wanda["statistics"]] == [
        model["statistics"] for model in models
    ]


def test_the_trust_region_is_of_the_bases_gradients_over_the_experts_data(world, tmp_path):
    shared = {"parameters": {"drop": 0.1, "scope": "tensor", "lambda": 0.5}}
    found = merged(world, tmp_path, "tatr", ("base{}.safetensors",), **shared)
    base, one, two = (tensors(world / name)[DOWN] for name in ("base", "e1", "e2"))
    g = [load_file(world / f"base{i}.safetensors")[f"{DOWN}::absolute"] for i in (1, 2)]
    omega = g[0] * np.abs(two - base) + g[1] * np.abs(one - base)
    outside = omega >= np.sort(omega.reshape(-1))[-(omega.size // 10)]
    near(found[DOWN], base + np.where(outside, 0.0, 0.5 * (one + two - 2 * base)))


def test_sensitivities_weigh_layers_by_the_experts_own_gradients(world, tmp_path):
    shared = {"parameters": {"temperature": 0.05}}
    found = merged(world, tmp_path, "sens", ("e{}.gradients.safetensors",), **shared)
    base, *experts = (tensors(world / name) for name in ("base", "e1", "e2"))

    def layer(name):
        return ".".join(name.split(".")[:3]) if ".layers." in name else name

    names = {layer(name): [n for n in base if layer(n) == layer(name)] for name in base}
    alphas = []
    for i, theta in enumerate(experts, start=1):
        g = load_file(world / f"e{i}.gradients.safetensors")
        s = {
            own: sum((np.abs(theta[n]) * g[f"{n}::absolute"]).sum() for n in inside)
            for own, inside in names.items()
        }
        length = np.sqrt(sum(x * x for x in s.values()))
        alphas.append({own: x / length for own, x in s.items()})
    for name, start in base.items():
        raised = np.exp([a[layer(name)] * 0.5 / 0.05 for a in alphas])
        factors = 2 * raised / raised.sum()
        change = sum(f * (e[name] - start) for f, e in zip(factors, experts, strict=True))
        near(found[name], start + change)


def test_task_vectors_are_pruned_by_the_inputs_of_each_expert(world, tmp_path):
    modify = {"modify": [{"wanda": {"density": 0.25}}]}
    found = merged(world, tmp_path, "task_arithmetic", ("e{}.channels.safetensors",), **modify)
    base = tensors(world / "base")
    expected = base[DOWN].copy()
    for i in (1, 2):
        square = load_file(world / f"e{i}.channels.safetensors")[f"{DOWN}::input_square"]
        tau = tensors(world / f"e{i}")[DOWN] - base[DOWN]
        scores = np.abs(tau) * np.sqrt(square)
        least = np.sort(scores, axis=1)[:, -(tau.shape[1] // 4)]
        expected += np.where(scores >= least[:, None], tau, 0.0)
    near(found[DOWN], expected)
    embedding = "model.embed_tokens.weight"
    plain = base[embedding] + sum(
        tensors(world / f"e{i}")[embedding] - base[embedding] for i in (1, 2)
    )
    near(found[embedding], plain)


def test_distances_of_logits_are_means_over_predictions_and_items(world):
    from transformers import AutoModelForCausalLM

    data = [texts(1), texts(2)]
    found = logit_distances([world / "e1", world / "e2"], data)
    one, two = (AutoModelForCausalLM.from_pretrained(world / f"e{i}").eval() for i in (1, 2))
    for i, j in ((0, 1), (1, 0)):
        gaps = []
        with torch.no_grad():
            for item in data[j].items:
                ids = item.inputs["input_ids"][None]
                gap = one(input_ids=ids).logits[0, :-1] - two(input_ids=ids).logits[0, :-1]
                gaps.append(gap.norm(dim=-1).mean())
        assert found[i][j] == pytest.approx(float(sum(gaps) / len(gaps)), rel=1e-5)
    assert found[0][0] == found[1][1] == 0.0
    with pytest.raises(UsageError, match="take data for each of the 2 experts, not 1"):
        logit_distances([world / "e1", world / "e2"], data[:1])
