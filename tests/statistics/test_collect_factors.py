"""Gradients of what adapters store, against PEFT's own network and autograd."""

from __future__ import annotations

import warnings
from dataclasses import replace

import peft
import pytest
import torch
from safetensors.torch import load_file
from tests.live.architectures import ARCHITECTURES, reference

import weightsmith
from weightsmith.cli.main import execute
from weightsmith.errors import CompatibilityError, UsageError
from weightsmith.statistics import Samples, next_tokens, unpadded

from . import reference as by_hand

LORA = {
    "llama": {
        "target_modules": ["q_proj", "down_proj", "embed_tokens"],
        "modules_to_save": ["lm_head"],
        "lora_alpha": 6,
    },
    "gpt2": {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_rslora": True},
    "gpt-oss": {"target_modules": ["o_proj"], "target_parameters": ["mlp.experts.down_proj"]},
}


def items_of(name):
    items = [
        replace(item, labels=item.inputs["input_ids"][1:], classes=48)
        for item in unpadded(ARCHITECTURES[name].batch())
    ]
    return Samples("texts", items, "log-likelihood", next_tokens, is_text=True)


def adapted(folder, place, **options):
    """PEFT's network around a checkpoint, saved with factors that are not zero."""
    torch.manual_seed(0)
    config = peft.LoraConfig(**{"r": 3, "task_type": "CAUSAL_LM", **options})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(reference(folder), config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn(parameter.shape))
        model.save_pretrained(place)
    # The reference asks for the gradients of all parameters.
    return model.eval().requires_grad_(True)


def by_files(gradients, stored):
    """Gradients of PEFT's parameters by the names in its files."""
    own = {
        name.replace(".default", "").replace("modules_to_save.", ""): gradient
        for name, gradient in gradients.items()
    }
    return {name: own[name] for name in stored}


@pytest.mark.parametrize("name", LORA)
def test_gradients_of_factors_are_those_that_peft_trains_by(saved, tmp_path, name):
    folder, data, place = saved(name), items_of(name), tmp_path / "adapter"
    network = adapted(folder, place, **LORA[name])
    stored = load_file(place / "adapter_model.safetensors")
    files = []
    for out, memory in (("whole", 1 << 40), ("blocks", 1)):
        made = weightsmith.collect(
            "fisher,gradients:1",
            f"{folder}+{place}",
            data=data,
            out=tmp_path / f"{out}.safetensors",
            estimator="empirical",
            factors=True,
            memory_bytes=memory,
        )
        files.append([file.path.read_bytes() for file in made.files])
    assert files[0] == files[1]
    fisher, found = (load_file(file.path) for file in made.files)
    every = [by_files(g, stored) for g in by_hand.losses(network, data.items, by_hand.causal_logs)]
    squares = by_files(
        by_hand.empirical_fisher(network, data.items, by_hand.causal_logs, per_token=False), stored
    )
    assert fisher.keys() == stored.keys()
    for key, weight in stored.items():
        own = torch.stack([gradients[key] for gradients in every])
        for value, expected in (
            (fisher[key], squares[key]),
            (found[f"{key}::0"], own[0]),
            (found[f"{key}::mean"], own.mean(0)),
            (found[f"{key}::absolute"], own.abs().mean(0)),
            (found[f"{key}::taylor"], own.mean(0) * weight),
            (found[f"{key}::sensitivity"], (own * weight).flatten(1).sum(1).abs().mean()[None]),
        ):
            assert value.shape == expected.shape
            scale = float(expected.abs().max())
            torch.testing.assert_close(
                value.double(), expected.double(), rtol=1e-4, atol=2e-5 * scale
            )
    header = weightsmith.read_statistics(made.files[0].path).header
    assert (header.name, header.other_name) == ("adapter", folder.name)


def test_a_strength_is_a_factor_of_the_gradient(saved, tmp_path):
    """W + c s B A with B doubled and c halved is one weight, whose gradient comes to A and B by c."""
    folder, data = saved("llama"), items_of("llama")
    adapted(folder, tmp_path / "adapter", target_modules=["q_proj"])
    found = {}
    for strength in (1.0, 0.5):
        tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
        out = tmp_path / f"{strength}.safetensors"
        if strength == 0.5:
            double(tmp_path / "adapter" / "adapter_model.safetensors", tensors)
        model = f"{folder}+{tmp_path / 'adapter'}:{strength}"
        weightsmith.collect("gradients", model, data=data, out=out, factors=True)
        found[strength] = load_file(out)
    for key, whole in found[1.0].items():
        if key.endswith("mean"):
            factor = 0.5 if "lora_B" in key else 1.0
            torch.testing.assert_close(found[0.5][key], factor * whole, rtol=1e-4, atol=1e-7)


def double(place, tensors):
    from safetensors.torch import save_file

    save_file({n: t * (2 if "lora_B" in n else 1) for n, t in tensors.items()}, place)


def test_what_has_no_gradients_of_factors_is_told(saved, tmp_path, capsys):
    folder, data, out = saved("llama"), items_of("llama"), tmp_path / "o.safetensors"
    with pytest.raises(UsageError, match="has 0 adapters"):
        weightsmith.collect("fisher", folder, data=data, out=out, factors=True)
    adapted(folder, tmp_path / "dora", target_modules=["q_proj"], use_dora=True)
    model = f"{folder}+{tmp_path / 'dora'}"
    with pytest.raises(CompatibilityError, match="more than two factors"):
        weightsmith.collect("fisher", model, data=data, out=out, factors=True)
    command = ["collect", "gram", str(folder), "--factors", "--data", "none.txt"]
    assert execute([*command, "--out", str(out)]) == 2
    assert "there are fisher and gradients" in capsys.readouterr().err
    assert not list(tmp_path.glob("o.*"))
