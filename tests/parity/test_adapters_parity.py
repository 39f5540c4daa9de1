"""mergekit's `model+adapter`: it writes base and adapter with PEFT first and merges that; here nothing is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
import yaml

from .test_folders import merge_both, tensors

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
peft = pytest.importorskip("peft")


@pytest.fixture(scope="module")
def adapted(checkpoints, tmp_path_factory) -> tuple[str, list[str]]:
    """A base of float32 and two adapters of it with random factors."""
    base, folders = checkpoints("llama")[0], []
    for number, (rank, alpha) in enumerate([(3, 6), (2, 8)]):
        torch.manual_seed(number)
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
        config = peft.LoraConfig(
            r=rank,
            lora_alpha=alpha,
            target_modules=["q_proj", "down_proj"],
            init_lora_weights=False,
        )
        folder = tmp_path_factory.mktemp("adapters") / f"adapter-{number}"
        peft.get_peft_model(model, config).save_pretrained(folder)
        folders.append(str(folder))
    return base, folders


@pytest.mark.parametrize(
    ("method", "facts"),
    [
        ("linear", {"parameters": {"weight": 0.5}}),
        ("ties", {"base_model": "base", "parameters": {"weight": 0.6, "density": 0.5}}),
        ("task_arithmetic", {"base_model": "base", "parameters": {"weight": 0.6}}),
    ],
)
def test_models_with_adapters_are_merged_as_mergekit_merges_them(
    peer, adapted, tmp_path: Path, method, facts
):
    base, adapters = adapted
    config = {"merge_method": method, "dtype": "float32", **facts}
    if "base_model" in config:
        config["base_model"] = base
    second = {"model": {"path": base}, "lora": {"path": adapters[1]}}
    config["models"] = [{"model": f"{base}+{adapters[0]}"}, {"model": second}]
    ours, theirs = merge_both(peer, yaml.safe_dump(config), tmp_path)
    expected, found = tensors(theirs), tensors(ours)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        # PEFT merges in float32, so where a sign is elected by rounding alone an element may go either way.
        off = (found[name] - tensor).abs() > 1e-5
        assert off.float().mean() < 1e-3, name
