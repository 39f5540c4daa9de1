"""Adapters of several parts of a pipeline: into single files, into folders of diffusers, and for one part alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import weightsmith
from weightsmith.adapters import open_adapter, open_model
from weightsmith.checkpoints import to_diffusers, to_ldm
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


UNETS = {
    "without attention at one level": {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    },
    "with labels": {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": 8,
    },
}


@pytest.mark.parametrize("unet", UNETS)
def test_names_of_unets_are_those_that_diffusers_makes_of_a_single_file(unet):
    diffusers = pytest.importorskip("diffusers")
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    sizes = {"block_out_channels": (8, 16), "norm_num_groups": 4, "cross_attention_dim": 8}
    with torch.device("meta"):
        model = diffusers.UNet2DConditionModel(
            layers_per_block=2, attention_head_dim=2, **sizes, **UNETS[unet]
        )
    ours = {n: n for n in model.state_dict() if not n.startswith("class_embedding")}
    levels = {int(n.split(".")[1]) for n in ours if n.startswith("up_blocks") and "attentions" in n}
    single = {to_ldm(name, levels): name for name in ours}
    assert len(single) == len(ours)
    assert not any("resnets" in name or "samplers" in name for name in single)
    assert {to_diffusers(name): name for name in single} == {v: k for k, v in single.items()}
    theirs = convert_ldm_unet_checkpoint(
        {f"model.diffusion_model.{name}": name for name in single},
        {"layers_per_block": 2, "class_embed_type": None},
    )
    assert theirs == {to_diffusers(name): name for name in single}


@pytest.mark.parametrize("to_single", [True, False])
def test_an_adapter_in_the_other_spelling_of_a_unet_is_applied(tmp_path, to_single):
    """kohya names Stable Diffusion 1 as diffusers does, and XL as single files do."""
    theirs = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    module, other = (theirs, UNET_QUERY) if to_single else (UNET_QUERY, theirs)
    lora = _lora(tmp_path / "lora.safetensors", f"lora_unet_{module.replace('.', '_')}")
    base = tmp_path / "base.safetensors"
    first = "time_embed.0.weight" if to_single else "down_blocks.0.resnets.0.conv1.weight"
    prefix = "model.diffusion_model." if to_single else ""
    save_file(
        {f"{prefix}{other}.weight": _random(8, 8, seed=0), f"{prefix}{first}": torch.ones(2)}, base
    )
    weightsmith.merge(merge_recipe(str(base), [str(lora)]), tmp_path / "out")
    after = load_file(tmp_path / "out/model.safetensors")[f"{prefix}{other}.weight"]
    _near(after, _random(8, 8, seed=0).double() + _change(0))


def test_openclips_fused_projections_take_the_changes_of_their_parts(tmp_path):
    layer = "text_model_encoder_layers_3"
    lora = _lora(
        tmp_path / "lora.safetensors",
        f"lora_te2_{layer}_self_attn_q_proj",
        f"lora_te2_{layer}_self_attn_v_proj",
        f"lora_te2_{layer}_self_attn_out_proj",
        f"lora_te2_{layer}_mlp_fc1",
    )
    block = "conditioner.embedders.1.model.transformer.resblocks.3"
    before = {
        f"{block}.attn.in_proj_weight": _random(24, 8, seed=1),
        f"{block}.attn.out_proj.weight": _random(8, 8, seed=2),
        f"{block}.mlp.c_fc.weight": _random(8, 8, seed=3),
    }
    save_file(before, tmp_path / "base.safetensors")
    recipe = merge_recipe(str(tmp_path / "base.safetensors"), [str(lora)])
    weightsmith.merge(recipe, tmp_path / "out")
    after = load_file(tmp_path / "out/model.safetensors")
    zeros = torch.zeros(8, 8, dtype=torch.float64)
    changes = (torch.cat([_change(0), zeros, _change(1)]), _change(2), _change(3))
    for (name, value), change in zip(before.items(), changes, strict=True):
        _near(after[name], value.double() + change)
    assert weightsmith.verify(tmp_path / "out", recompute=3).ok


def test_what_is_converted_is_of_one_part(single, lora, tmp_path):
    with pytest.raises(CompatibilityError, match="name the one of them"):
        weightsmith.convert_adapter(lora, tmp_path / "out", "peft", base=single)
