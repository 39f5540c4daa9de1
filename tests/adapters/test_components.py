"""Adapters of several parts of a pipeline: into single files, into folders of diffusers, and for one part alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import weightsmith
from weightsmith.adapters import open_adapter, open_model
from weightsmith.cli.adapters.adapter_merge import merge_recipe
from weightsmith.errors import CompatibilityError
from weightsmith.recipes import Recipe

UNET_QUERY = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"
TEXT_QUERY = "text_model.encoder.layers.0.self_attn.q_proj"


def _random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _lora(place: Path, *modules: str) -> Path:
    tensors = {}
    for i, module in enumerate(modules):
        tensors[f"{module}.lora_down.weight"] = _random(2, 8, seed=10 + i)
        tensors[f"{module}.lora_up.weight"] = _random(8, 2, seed=20 + i)
        tensors[f"{module}.alpha"] = torch.tensor(1.0)
    save_file(tensors, place)
    return place


def _change(number: int) -> torch.Tensor:
    """up down alpha / rank, in float64."""
    return (_random(8, 2, seed=20 + number).double() @ _random(2, 8, seed=10 + number).double()) / 2


SINGLE = (
    f"model.diffusion_model.{UNET_QUERY}.weight",
    f"conditioner.embedders.0.transformer.{TEXT_QUERY}.weight",
    f"text_encoders.t5xxl.transformer.{TEXT_QUERY}.weight",
)
UNET = f"lora_unet_{UNET_QUERY.replace('.', '_')}"
TEXT = f"lora_te1_{TEXT_QUERY.replace('.', '_')}"


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    return _lora(tmp_path / "lora.safetensors", UNET, TEXT)


@pytest.fixture
def single(tmp_path: Path) -> Path:
    """The names of SDXL's single file; another encoder there has modules of the same flat names."""
    tensors = {name: _random(8, 8, seed=i) for i, name in enumerate(SINGLE)}
    save_file(tensors, tmp_path / "single.safetensors")
    return tmp_path / "single.safetensors"


def _pipeline(folder: Path, seed: int = 0) -> Path:
    parts = {
        "unet": ("diffusion_pytorch_model.safetensors", UNET_QUERY, "UNet2DConditionModel"),
        "text_encoder": ("model.safetensors", TEXT_QUERY, "CLIPTextModel"),
    }
    listed: dict[str, object] = {
        "_class_name": "StableDiffusionPipeline",
        "scheduler": [None, None],
    }
    for i, (part, (file, module, kind)) in enumerate(parts.items()):
        (folder / part).mkdir(parents=True)
        tensors = {f"{module}.weight": _random(8, 8, seed=seed + i), "bias": torch.zeros(8)}
        save_file(tensors, folder / part / file, {"format": "pt"})
        (folder / part / "config.json").write_text(json.dumps({"_class_name": kind}))
        listed[part] = ["library", kind]
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer/merges.txt").write_text("a b")
    listed["tokenizer"] = ["transformers", "CLIPTokenizer"]
    (folder / "model_index.json").write_text(json.dumps(listed))
    return folder


def _near(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-6)


def test_every_part_is_changed_in_a_single_file_that_has_all(tmp_path, single, lora):
    weightsmith.merge(merge_recipe(str(single), [str(lora)]), tmp_path / "out")
    before, after = load_file(single), load_file(tmp_path / "out/model.safetensors")
    unet, text, other = SINGLE
    _near(after[unet], before[unet].double() + _change(0))
    _near(after[text], before[text].double() + _change(1))
    assert torch.equal(after[other], before[other])


def test_one_part_is_changed_where_that_is_asked(tmp_path, single, lora):
    recipe = merge_recipe(str(single), [str(lora)], component="text_encoder")
    weightsmith.merge(recipe, tmp_path / "out")
    before, after = load_file(single), load_file(tmp_path / "out/model.safetensors")
    unet, text, _ = SINGLE
    assert torch.equal(after[unet], before[unet])
    _near(after[text], before[text].double() + _change(1))
    assert weightsmith.verify(tmp_path / "out", recompute=3).ok
    again = weightsmith.replay(tmp_path / "out", tmp_path / "again")
    assert (
        again.inputs["single.safetensors+lora.safetensors"].adapters[0].component == "text_encoder"
    )


def test_a_base_of_one_part_says_which_it_is(tmp_path, lora):
    base = tmp_path / "unet.safetensors"
    save_file({f"{UNET_QUERY}.weight": _random(8, 8, seed=0)}, base)
    with pytest.raises(CompatibilityError, match=r"does not have.*'unet' alone \(`--component`"):
        open_model(f"{base}+{lora}")
    weightsmith.merge(merge_recipe(str(base), [str(lora)], component="unet"), tmp_path / "out")
    after = load_file(tmp_path / "out/model.safetensors")[f"{UNET_QUERY}.weight"]
    _near(after, load_file(base)[f"{UNET_QUERY}.weight"].double() + _change(0))


def test_a_part_that_the_adapter_does_not_change_is_an_error(lora):
    with pytest.raises(CompatibilityError, match="nothing for 'vae'"):
        open_adapter(lora).of_component("vae")


def test_a_folder_of_diffusers_is_written_with_every_part_in_its_place(tmp_path, lora):
    base = _pipeline(tmp_path / "pipeline")
    weightsmith.merge(merge_recipe(str(base), [str(lora)]), tmp_path / "out")
    out = tmp_path / "out"
    for number, (file, module) in enumerate(
        (
            ("unet/diffusion_pytorch_model.safetensors", UNET_QUERY),
            ("text_encoder/model.safetensors", TEXT_QUERY),
        )
    ):
        before, after = load_file(base / file), load_file(out / file)
        assert before.keys() == after.keys()
        _near(after[f"{module}.weight"], before[f"{module}.weight"].double() + _change(number))
    names = {p.relative_to(base) for p in base.rglob("*") if p.is_file()}
    assert names <= {p.relative_to(out) for p in out.rglob("*")}
    assert weightsmith.verify(out, recompute=9).ok


def test_two_folders_of_diffusers_are_merged_part_by_part(tmp_path):
    one, other = _pipeline(tmp_path / "one"), _pipeline(tmp_path / "other", seed=50)
    models = [{"model": str(m), "parameters": {"weight": 0.5}} for m in (one, other)]
    recipe = {"weightsmith": 1, "merge_method": "linear", "models": models}
    assert not weightsmith.plan(recipe).findings
    weightsmith.merge(recipe, tmp_path / "out")
    file = "text_encoder/model.safetensors"
    mean = (
        load_file(one / file)[f"{TEXT_QUERY}.weight"]
        + load_file(other / file)[f"{TEXT_QUERY}.weight"]
    ) / 2
    _near(load_file(tmp_path / "out" / file)[f"{TEXT_QUERY}.weight"], mean.double())


def test_a_recipe_names_a_part_beside_the_adapters_path(single, lora):
    lora_part = {"path": str(lora), "scale": 0.5, "component": "unet"}
    model = {"model": str(single), "lora": lora_part}
    recipe = Recipe.load(
        {"weightsmith": 1, "merge_method": "passthrough", "models": [{"model": model}]}
    )
    assert "component: unet" in recipe.dump()
    assert Recipe.load(recipe.dump()).digest() == recipe.digest()
    plain = {**model, "lora": {"path": str(lora), "scale": 0.5}}
    other = Recipe.load(
        {"weightsmith": 1, "merge_method": "passthrough", "models": [{"model": plain}]}
    )
    assert other.digest() != recipe.digest()
    with pytest.raises(weightsmith.WeightsmithError, match="component"):
        Recipe.load(
            {
                "weightsmith": 1,
                "merge_method": "passthrough",
                "models": [{"model": {**model, "lora": {"path": "x", "component": 3}}}],
            }
        )
