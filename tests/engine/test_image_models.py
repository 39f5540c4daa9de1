"""Image models: blocks and parts by name in both layouts, the file's own record, shards of components."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import weightsmith
from weightsmith.errors import WeightsmithError

# What one block is called in a single file and in a folder of diffusers.
NAMES = {
    "IN00": ("input_blocks.0.0.weight", "conv_in.weight"),
    "IN01": (
        "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight",
    ),
    "IN03": ("input_blocks.3.0.op.weight", "down_blocks.0.downsamplers.0.conv.weight"),
    "IN04": ("input_blocks.4.0.in_layers.2.weight", "down_blocks.1.resnets.0.conv1.weight"),
    "M00": ("middle_block.1.norm.weight", "mid_block.attentions.0.norm.weight"),
    "OUT02": ("output_blocks.2.1.conv.weight", "up_blocks.0.upsamplers.0.conv.weight"),
    "OUT05": ("output_blocks.5.1.norm.weight", "up_blocks.1.attentions.2.norm.weight"),
    "HEAD": ("out.2.weight", "conv_out.weight"),
    "BASE": ("time_embed.0.weight", "time_embedding.linear_1.weight"),
}
SINGLE = "model.diffusion_model."
VAE, TEXT = "first_stage_model.encoder.conv_in.weight", "cond_stage_model.transformer.a.weight"
FOLDER = "unet/diffusion_pytorch_model.safetensors"


def tensors(seed: int, names: list[str], dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(3, 4, generator=generator).to(dtype) for name in names}


def single(place: Path, seed: int, **metadata: str) -> Path:
    names = [SINGLE + ldm for ldm, _ in NAMES.values()]
    save_file(tensors(seed, [*names, VAE, TEXT]), place, {"format": "pt", **metadata})
    return place


def pipeline(folder: Path, seed: int) -> Path:
    """The tensors of `single` in components of diffusers."""
    of_file = tensors(seed, [SINGLE + ldm for ldm, _ in NAMES.values()] + [VAE, TEXT])
    unet = {theirs: of_file[SINGLE + ldm] for ldm, theirs in NAMES.values()}
    parts = {
        FOLDER: unet,
        "vae/diffusion_pytorch_model.safetensors": {"encoder.conv_in.weight": of_file[VAE]},
        "text_encoder/model.safetensors": {"a.weight": of_file[TEXT]},
    }
    listed: dict[str, object] = {"_class_name": "StableDiffusionPipeline"}
    for file, own in parts.items():
        (folder / file).parent.mkdir(parents=True)
        save_file(own, folder / file, {"format": "pt"})
        (folder / file).with_name("config.json").write_text("{}")
        listed[Path(file).parent.name] = ["diffusers", "Part"]
    (folder / "model_index.json").write_text(json.dumps(listed))
    return folder


def recipe(a: Path, b: Path, alpha: object, **more: object) -> dict[str, object]:
    return {
        "weightsmith": 1,
        "merge_method": "wise_ft",
        "base_model": str(a),
        "models": [{"model": str(b)}],
        "parameters": {"alpha": alpha},
        **more,
    }


def between(a: torch.Tensor, b: torch.Tensor, alpha: float) -> torch.Tensor:
    return ((1 - alpha) * a.double() + alpha * b.double()).float()


WEIGHTS = {"BASE": 0.1, "IN00-IN04": [0.2, 0.6], "M00": 0.7, "OUT": 0.8, "HEAD": 0.9}
EXPECTED = {
    "IN00": 0.2,
    "IN01": 0.3,
    "IN03": 0.5,
    "IN04": 0.6,
    "M00": 0.7,
    "OUT02": 0.8,
    "OUT05": 0.8,
    "HEAD": 0.9,
    "BASE": 0.1,
}


def test_weights_of_blocks_are_those_of_single_files_and_of_folders(tmp_path):
    a, b = (single(tmp_path / f"{i}.safetensors", i) for i in range(2))
    weightsmith.merge(recipe(a, b, {"blocks": WEIGHTS}), tmp_path / "one")
    folders = [pipeline(tmp_path / f"folder{i}", i) for i in range(2)]
    weightsmith.merge(recipe(*folders, {"blocks": WEIGHTS}), tmp_path / "many")
    of_file, of_folder = (
        load_file(tmp_path / "one/model.safetensors"),
        load_file(tmp_path / "many" / FOLDER),
    )
    first, second = load_file(a), load_file(b)
    for label, (ldm, theirs) in NAMES.items():
        name = SINGLE + ldm
        wanted = between(first[name], second[name], EXPECTED[label])
        torch.testing.assert_close(of_file[name], wanted, rtol=1e-6, atol=1e-6)
        assert torch.equal(of_folder[theirs], of_file[name])
    assert weightsmith.verify(tmp_path / "many", recompute=3).ok


def test_a_list_of_numbers_goes_by_the_order_of_blocks(tmp_path):
    a, b = (single(tmp_path / f"{i}.safetensors", i) for i in range(2))
    listed = ",".join(str(i / 32) for i in range(26))
    plan = weightsmith.plan(recipe(a, b, {"blocks": listed}))
    weightsmith.merge(recipe(a, b, {"blocks": listed}), tmp_path / "out")
    merged, first, second = (
        load_file(tmp_path / "out/model.safetensors"),
        load_file(a),
        load_file(b),
    )
    order = ["BASE", *(f"IN{i:02d}" for i in range(12)), "M00", *(f"OUT{i:02d}" for i in range(12))]
    places = {label: i / 32 for i, label in enumerate(order)} | {"HEAD": 25 / 32}
    for label, (ldm, _) in NAMES.items():
        name = SINGLE + ldm
        wanted = between(first[name], second[name], places[label])
        torch.testing.assert_close(merged[name], wanted, rtol=1e-6, atol=1e-6)
    (idle,) = [f for f in plan.findings if f.code == "idle-block"]
    assert idle.message.endswith(
        "18 blocks that the recipe names: IN02, IN05, IN06, IN07, IN08, IN09 and 12 more"
    )


@pytest.mark.parametrize("make", [single, pipeline])
def test_parts_are_kept_and_taken_by_their_names(tmp_path, make):
    suffix = ".safetensors" if make is single else ""
    a, b, c = (make(tmp_path / f"{i}{suffix}", i) for i in range(3))
    rules = [
        {"match": {"component": "vae"}, "keep": str(c)},
        {"match": {"component": "text_encoder"}, "keep": str(b)},
        {"match": {"component": "unet", "block": ["M00", "IN03-IN04"]}, "parameters": {"alpha": 0}},
    ]
    weightsmith.merge(recipe(a, b, 1, rules=rules), tmp_path / "out")
    every = [
        {n: t for f in sorted(p.rglob("*.safetensors")) for n, t in named(f, p).items()}
        if p.is_dir()
        else named(p, p.parent)
        for p in (a, b, c, tmp_path / "out")
    ]
    first, second, third, merged = ({n.rpartition("/")[2]: t for n, t in e.items()} for e in every)
    for label, spelled in NAMES.items():
        name = SINGLE + spelled[0] if make is single else spelled[1]
        own = first if label in ("M00", "IN03", "IN04") else second
        assert torch.equal(merged[name], own[name]), label
    vae, text = (VAE, TEXT) if make is single else ("encoder.conv_in.weight", "a.weight")
    assert torch.equal(merged[vae], third[vae])
    assert torch.equal(merged[text], second[text])


def named(file: Path, root: Path):
    return {f"{file.relative_to(root)}/{name}": t for name, t in load_file(file).items()}


def test_a_vae_in_a_file_of_its_own_takes_the_place_of_the_one_inside(tmp_path):
    a, b = (single(tmp_path / f"{i}.safetensors", i) for i in range(2))
    vae = {VAE.removeprefix("first_stage_model."): torch.full((3, 4), 7.0)}
    save_file(vae, tmp_path / "vae.safetensors")
    modules = {
        "vae": {
            "match": {"component": "vae"},
            "prefix": "first_stage_model",
            "merge_method": "passthrough",
            "models": [{"model": str(tmp_path / "vae.safetensors")}],
        },
        "rest": {
            "match": {"glob": "*"},
            "merge_method": "wise_ft",
            "models": [{"model": str(b)}],
        },
    }
    whole = {"weightsmith": 1, "base_model": str(a), "modules": modules}
    weightsmith.merge(whole, tmp_path / "out")
    merged = load_file(tmp_path / "out/model.safetensors")
    assert torch.equal(merged[VAE], torch.full((3, 4), 7.0))
    first, second = load_file(a), load_file(b)
    for name in merged.keys() - {VAE}:
        torch.testing.assert_close(merged[name], between(first[name], second[name], 0.5))


def test_free_numbers_of_blocks_are_one_for_each_and_become_conditions(tmp_path):
    a, b = (pipeline(tmp_path / f"{i}", i) for i in range(2))
    free = {"free": [0, 1], "start": 0.25, "per": "block"}
    whole = recipe(a, b, {"blocks": {"IN": free, "M": 0.5, "OUT": 1, "HEAD": 1, "BASE": 0}})
    numbers = list(weightsmith.plan(whole).free.numbers)
    found = [f"alpha[0].value[block {label}]" for label in ("IN00", "IN01", "IN03", "IN04")]
    assert sorted(numbers) == sorted(found)
    values = {name: i / 4 for i, name in enumerate(found)}
    weightsmith.merge(whole, tmp_path / "out", values=values)
    first, second, merged = (load_file(p / FOLDER) for p in (a, b, tmp_path / "out"))
    for i, label in enumerate(("IN00", "IN01", "IN03", "IN04")):
        name = NAMES[label][1]
        torch.testing.assert_close(merged[name], between(first[name], second[name], i / 4))
    assert weightsmith.verify(tmp_path / "out", recompute=2).ok


def test_what_overflows_float16_is_an_error_until_it_is_clamped(tmp_path):
    for name, number in (("a", 60000.0), ("b", 65000.0), ("c", -65504.0)):
        weights = {"blocks.0.weight": torch.tensor([1.0, number]), "ids": torch.arange(3)}
        save_file(
            {n: t.half() if t.is_floating_point() else t for n, t in weights.items()},
            tmp_path / f"{name}.safetensors",
        )
    whole = {
        "weightsmith": 1,
        "merge_method": "task_arithmetic",
        "base_model": str(tmp_path / "c.safetensors"),
        "models": [{"model": str(tmp_path / f"{name}.safetensors")} for name in "ab"],
    }
    with pytest.raises(
        WeightsmithError, match=r"1 NaN or infinite.*overflows float16.*then: \[clamp\]"
    ):
        weightsmith.merge(whole, tmp_path / "refused")
    weightsmith.merge({**whole, "then": ["clamp"]}, tmp_path / "out")
    merged = load_file(tmp_path / "out/model.safetensors")
    assert merged["blocks.0.weight"].tolist() == [1.0, 65504.0]
    assert merged["blocks.0.weight"].dtype == torch.float16
    assert merged["ids"].tolist() == [0, 1, 2]


def test_the_record_in_a_file_is_carried_but_for_its_hashes(tmp_path):
    said = {
        "modelspec.title": "Base XL",
        "modelspec.architecture": "stable-diffusion-xl-v1-base",
        "modelspec.hash_sha256": "0xabc",
        "sshs_model_hash": "abc",
        "ss_base_model_version": "sdxl",
    }
    a = single(tmp_path / "a.safetensors", 0, **said)
    b = single(tmp_path / "b.safetensors", 1)
    weightsmith.merge(recipe(a, b, 0.5), tmp_path / "out")
    with safe_open(tmp_path / "out/model.safetensors", "np") as file:
        found = file.metadata()
    kept = {key: said[key] for key in said if "hash" not in key}
    assert found == {"format": "pt", "modelspec.merged_from": "Base XL, b", **kept}
    assert weightsmith.verify(tmp_path / "out").ok


def test_a_component_above_the_shard_size_is_sharded_and_reads_back(tmp_path):
    a, b = (pipeline(tmp_path / f"{i}", i) for i in range(2))
    weightsmith.merge(recipe(a, b, 0.5, shard_size=200), tmp_path / "small")
    weightsmith.merge(recipe(a, b, 0.5), tmp_path / "whole")
    index = json.loads((tmp_path / f"small/{FOLDER}.index.json").read_text())
    whole = load_file(tmp_path / "whole" / FOLDER)
    assert set(index["weight_map"]) == set(whole)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in whole.values())
    for name, shard in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / "small/unet" / shard)[name], whole[name])
    assert not (tmp_path / f"small/{FOLDER}").exists()
    again = recipe(tmp_path / "small", tmp_path / "whole", 0.5)
    weightsmith.merge(again, tmp_path / "again")
    assert torch.equal(
        load_file(tmp_path / "again" / FOLDER)["conv_in.weight"], whole["conv_in.weight"]
    )


def test_a_single_file_becomes_a_single_file_whatever_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr("weightsmith.recipes.resolution.resolve._DEFAULT_SHARD", 200)
    a, b = (single(tmp_path / f"{i}.safetensors", i) for i in range(2))
    weightsmith.merge(recipe(a, b, 0.5), tmp_path / "out")
    assert [f.name for f in (tmp_path / "out").glob("*.safetensors")] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("alpha", "said"),
    [
        ({"blocks": {"IN1": 0}}, "no block 'IN1'"),
        ({"blocks": {"IN05-IN02": 0}}, "no block 'IN05-IN02'"),
        ({"blocks": {"IN00-OUT02": 0}}, "no block 'IN00-OUT02'"),
        ({"blocks": {"IN": [0, 1]}}, "write a range such as IN00-IN11"),
        (
            {"blocks": "0,1,2"},
            "26 (25 without BASE) or 20 (19 without BASE) numbers, but this one has 3",
        ),
        ({"blocks": {"M00": 1}, "value": 2}, "'value' is beside 'blocks'"),
        ({"blocks": 3}, "expected a mapping from blocks to numbers"),
        ({"match": {"component": "clip"}, "value": 2}, "no component 'clip'"),
    ],
)
def test_blocks_that_mean_nothing_are_refused(tmp_path, alpha, said):
    with pytest.raises(WeightsmithError) as refused:
        weightsmith.plan(recipe(tmp_path / "a", tmp_path / "b", alpha))
    assert said in str(refused.value)


def test_names_of_interfaces_are_read_where_they_mean_one_method(tmp_path):
    a, b = (single(tmp_path / f"{i}.safetensors", i) for i in range(2))
    ours = weightsmith.plan(recipe(a, b, 0.3)).recipe
    theirs = weightsmith.plan(recipe(a, b, 0.3, merge_method="weighted_sum")).recipe
    assert theirs.digest() == ours.digest()
    with pytest.raises(
        WeightsmithError, match=r"A \+ alpha \(B - C\): write task_arithmetic with C as"
    ):
        weightsmith.plan(recipe(a, b, 0.3, merge_method="add_difference"))


def test_adding_a_difference_is_task_arithmetic_around_the_model_that_is_subtracted(tmp_path):
    a, b, c = (single(tmp_path / f"{i}.safetensors", i) for i in range(3))
    models = [{"model": str(a)}, {"model": str(b), "parameters": {"weight": 0.7}}]
    whole = {
        "weightsmith": 1,
        "merge_method": "task_arithmetic",
        "base_model": str(c),
        "models": models,
    }
    weightsmith.merge({**whole, "donor": str(a)}, tmp_path / "out")
    first, second, third, merged = map(load_file, (a, b, c, tmp_path / "out/model.safetensors"))
    for name, tensor in merged.items():
        wanted = first[name].double() + 0.7 * (second[name].double() - third[name].double())
        torch.testing.assert_close(tensor.double(), wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
def test_diffusers_loads_what_was_merged_by_blocks_and_sharded(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    models = []
    for seed in range(2):
        torch.manual_seed(seed)
        unet = diffusers.UNet2DConditionModel(
            sample_size=8,
            layers_per_block=2,
            block_out_channels=(4, 4),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=4,
            attention_head_dim=2,
            norm_num_groups=2,
        )
        folder = tmp_path / str(seed)
        # Written as shards, as large models are.
        unet.save_pretrained(folder / "unet", max_shard_size="30KB")
        assert (folder / f"{FOLDER}.index.json").is_file()
        listed = {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
        (folder / "model_index.json").write_text(json.dumps(listed))
        models.append(unet.state_dict())
    whole = recipe(tmp_path / "0", tmp_path / "1", {"blocks": WEIGHTS}, shard_size="20KB")
    whole["parameters"]["alpha"]["blocks"] = {"IN": 0.25, "M": 0.5, "OUT": 1, "HEAD": 1, "BASE": 0}
    weightsmith.merge(whole, tmp_path / "out")
    assert (tmp_path / f"out/{FOLDER}.index.json").is_file()
    loaded, info = diffusers.UNet2DConditionModel.from_pretrained(
        tmp_path / "out/unet", output_loading_info=True
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys"))
    shares = {"down": 0.25, "conv_in": 0.25, "mid": 0.5, "up": 1, "conv_norm": 1, "conv_out": 1}
    for name, tensor in loaded.state_dict().items():
        share = next((s for start, s in shares.items() if name.startswith(start)), 0)
        wanted = between(models[0][name], models[1][name], share)
        torch.testing.assert_close(tensor, wanted, rtol=1e-6, atol=1e-6)
