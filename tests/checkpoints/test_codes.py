"""Weights that are stored as codes with scales are recognised by their tensors, whatever the configuration says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import weightsmith
from weightsmith.checkpoints import open_checkpoint
from weightsmith.errors import RecipeError

FP8 = torch.float8_e4m3fn
LINEAR = "blocks.0.attn.q"


def stored(folder: Path, name: str, tensors: dict[str, torch.Tensor], config: object = None) -> str:
    place = folder / name
    place.mkdir()
    save_file({"blocks.0.norm.weight": torch.ones(4), **tensors}, str(place / "model.safetensors"))
    if config is not None:
        (place / "config.json").write_text(json.dumps(config))
    return str(place)


def codes(leaf: str, dtype: torch.dtype, *scales: str) -> dict[str, torch.Tensor]:
    found = {f"{LINEAR}.{leaf}": torch.ones(4, 4).to(dtype)}
    return found | {f"{LINEAR}.{scale}": torch.ones(1) for scale in scales}


QUANTISED = {
    "ComfyUI": codes("weight", FP8, "scale_weight", "scale_input"),
    "compressed-tensors": codes("weight", FP8, "weight_scale"),
    "DeepSeek": codes("weight", FP8, "weight_scale_inv"),
    "packed": codes("weight_packed", torch.int32, "weight_scale"),
    "NVFP4": codes("weight", torch.uint8, "weight_scale", "weight_scale_2"),
    "bitsandbytes": codes("weight", torch.uint8, "weight.absmax", "weight.quant_map"),
    "bitsandbytes of 8 bits": codes("weight", torch.int8, "SCB"),
    "GPTQ": codes("qweight", torch.int32, "qzeros", "scales"),
    "MXFP4": codes("down_proj_blocks", torch.uint8, "down_proj_scales"),
}
PLAIN = {
    "float8 without a scale": codes("weight", FP8),
    "a float beside a scale of its layer": codes("weight", torch.bfloat16, "weight_scale", "scale"),
    "a float beside scales": codes("down_proj_blocks", torch.float32, "down_proj_scales"),
    "integers without a scale": codes("weight", torch.int64, "bias"),
}


@pytest.mark.parametrize("kind", QUANTISED)
def test_codes_beside_their_scales_are_an_error_that_names_both(tmp_path: Path, kind: str) -> None:
    checkpoint = open_checkpoint(stored(tmp_path, "a", QUANTISED[kind]))
    (finding,) = [f for f in checkpoint.findings() if f.code == "quantised"]
    code, *scales = QUANTISED[kind]
    assert code in finding.message
    assert any(f"{scale}' scales" in finding.message for scale in scales)
    assert "dequantise" in finding.fix


@pytest.mark.parametrize("kind", PLAIN)
def test_weights_that_are_numbers_are_none(tmp_path: Path, kind: str) -> None:
    checkpoint = open_checkpoint(stored(tmp_path, "a", PLAIN[kind]))
    assert not [f for f in checkpoint.findings() if f.code == "quantised"]


def test_a_configuration_that_says_so_and_the_tensors_are_one_error(tmp_path: Path) -> None:
    config = {"quantization_config": {"quant_method": "fp8"}}
    checkpoint = open_checkpoint(stored(tmp_path, "a", QUANTISED["DeepSeek"], config))
    (finding,) = [f for f in checkpoint.findings() if f.code == "quantised"]
    assert "fp8" in finding.message


def test_codes_are_not_merged_apart_from_their_scales(tmp_path: Path) -> None:
    """Codes and scales were averaged each by themselves: the product of means is not the mean of products."""
    models = [{"model": stored(tmp_path, name, QUANTISED["ComfyUI"])} for name in "ab"]
    recipe = {"weightsmith": 1, "merge_method": "linear", "models": models}
    with pytest.raises(RecipeError, match=r"codes, which 'blocks\.0\.attn\.q\.scale_weight'"):
        weightsmith.merge(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()
