"""Whole merges by both programs: the same files in the sense that matters - tensors, values, configuration, logits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

EACH = {"weight": 0.6, "density": 0.5}
# method: (number of experts, has a base, shared parameters, parameters of each expert)
METHODS: dict[str, tuple[int, bool, dict[str, Any], dict[str, Any]]] = {
    "linear": (2, False, {}, {"weight": [0.2, 0.8]}),
    "slerp": (1, True, {"t": [0.1, 0.9]}, {}),
    "nuslerp": (2, True, {}, {"weight": 0.5}),
    "multislerp": (2, True, {}, {"weight": 0.5}),
    "karcher": (2, False, {}, {}),
    "passthrough": (1, False, {}, {}),
    "model_stock": (2, True, {}, {}),
    "nearswap": (1, True, {"t": 0.01}, {}),
    "arcee_fusion": (1, True, {}, {}),
    "task_arithmetic": (2, True, {"lambda": 0.9}, {"weight": 0.6}),
    "ties": (2, True, {}, EACH),
    "dare_ties": (2, True, {}, {"weight": 0.6}),
    "dare_linear": (2, True, {}, {"weight": 0.6}),
    "breadcrumbs": (2, True, {}, EACH),
    "breadcrumbs_ties": (2, True, {}, EACH),
    "della": (2, True, {}, {"weight": 0.6}),
    "della_linear": (2, True, {}, {"weight": 0.6}),
    "sce": (2, True, {"select_topk": 0.5}, {}),
    "ram": (2, True, {}, {}),
    "ramplus_tl": (2, True, {}, {}),
}


def recipe(method: str, folders: list[str], **facts: str) -> str:
    experts, has_base, shared, each = METHODS[method]
    config: dict[str, Any] = {"merge_method": method, **facts}
    config["models"] = [
        {"model": f, **({"parameters": each} if each else {})} for f in folders[1 : experts + 1]
    ]
    if has_base:
        config["base_model"] = folders[0]
    if shared:
        config["parameters"] = shared
    return yaml.safe_dump(config)


def merge_both(peer: Any, text: str, folder: Path) -> tuple[Path, Path]:
    (folder / "recipe.yaml").write_text(text)
    options = peer.options.MergeOptions(
        copy_tokenizer=False,
        quiet=True,
        write_model_card=False,
        lora_merge_cache=str(folder / "cache"),
    )
    config = peer.config.MergeConfiguration.model_validate(yaml.safe_load(text))
    peer.merge.run_merge(config, str(folder / "theirs"), options)
    command = [
        sys.executable,
        "-m",
        "weightsmith",
        "merge",
        folder / "recipe.yaml",
        folder / "ours",
        "--backend",
        "torch",
    ]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "ours", folder / "theirs"


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return {
        name: tensor
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def assert_same_values(ours: Path, theirs: Path, relative: float) -> None:
    mine, other = tensors(ours), tensors(theirs)
    assert {n: (t.dtype, t.shape) for n, t in mine.items()} == {
        n: (t.dtype, t.shape) for n, t in other.items()
    }
    for name, tensor in mine.items():
        error = (tensor.double() - other[name].double()).abs().max()
        assert float(error) <= relative * float(other[name].double().abs().max()), name


def assert_same_config(ours: Path, theirs: Path) -> None:
    import transformers

    mine, other = (transformers.AutoConfig.from_pretrained(f).to_dict() for f in (ours, theirs))
    unimportant = {"transformers_version", "_name_or_path"}
    assert {k: v for k, v in mine.items() if k not in unimportant} == {
        k: v for k, v in other.items() if k not in unimportant
    }


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_mergekits_folder(peer, checkpoints, tmp_path, method):
    ours, theirs = merge_both(peer, recipe(method, checkpoints("llama"), dtype="float32"), tmp_path)
    assert_same_values(ours, theirs, 2e-5)
    assert_same_config(ours, theirs)


@pytest.mark.parametrize("family", ["llama-tied", "mistral", "qwen2", "gpt2"])
def test_other_families_give_mergekits_folder_and_load(peer, checkpoints, tmp_path, family):
    import transformers

    text = recipe("ties", checkpoints(family), dtype="float32", out_dtype="bfloat16")
    ours, theirs = merge_both(peer, text, tmp_path)
    assert_same_values(ours, theirs, 2.0**-8)
    assert_same_config(ours, theirs)
    load = transformers.AutoModelForCausalLM.from_pretrained
    model, info = load(ours, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokens = torch.arange(12).reshape(1, 12)
    assert torch.allclose(
        model(tokens).logits.float(), load(theirs)(tokens).logits.float(), atol=0.05
    )


def test_stacked_layers_give_mergekits_folder(peer, checkpoints, tmp_path):
    import transformers

    folders = checkpoints("llama")
    parts = [
        {"sources": [{"model": folders[n], "layer_range": [a, b]}]}
        for n, a, b in ((0, 0, 3), (1, 1, 4), (2, 0, 4))
    ]
    text = yaml.safe_dump({"merge_method": "passthrough", "slices": parts, "dtype": "float16"})
    ours, theirs = merge_both(peer, text, tmp_path)
    assert_same_values(ours, theirs, 0.0)
    assert json.loads((ours / "config.json").read_text())["num_hidden_layers"] == 10
    assert transformers.AutoModelForCausalLM.from_pretrained(ours).config.num_hidden_layers == 10


def test_the_command_line_programs_take_the_same_file(checkpoints, tmp_path):
    (tmp_path / "recipe.yaml").write_text(recipe("slerp", checkpoints("mistral"), dtype="bfloat16"))
    program = Path(sys.executable).with_name("mergekit-yaml")
    theirs = [
        program,
        tmp_path / "recipe.yaml",
        tmp_path / "theirs",
        "--no-copy-tokenizer",
        "--quiet",
    ]
    ours = [
        sys.executable,
        "-m",
        "weightsmith",
        "merge",
        tmp_path / "recipe.yaml",
        tmp_path / "ours",
    ]
    for command in (theirs, ours):
        subprocess.run(command, check=True, capture_output=True)
    assert_same_values(tmp_path / "ours", tmp_path / "theirs", 2.0**-8)
    assert_same_config(tmp_path / "ours", tmp_path / "theirs")
