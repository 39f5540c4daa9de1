"""Adapters of networks whose files name tensors otherwise: PEFT's are merged, and PEFT loads those that are written."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from tests.checkpoints.architecture_checks import targets
from tests.checkpoints.spelled_models import build, save

import weightsmith
from weightsmith.checkpoints import open_checkpoint
from weightsmith.live import quiet_library
from weightsmith.lora.adapter_writing import write_adapter
from weightsmith.lora.extraction import extract

peft = pytest.importorskip("peft")
pytest.importorskip("transformers.conversion_mapping")
pytestmark = pytest.mark.filterwarnings("ignore")

FAMILIES = [
    "vit",
    "gemma3",
    "qwen2_vl",
    "granitemoe",
    "gpt_neox",
    "siglip",
    "siglip vision",
    "aria",
    "beit",
    "swin",
    "dinov2",
    "mixtral",
    "qwen2_moe",
    "lfm2_moe",
]


def loaded(model, folder):
    """A network of the same class with the weights of a checkpoint."""
    with warnings.catch_warnings(), quiet_library():
        warnings.simplefilter("ignore")
        return type(model).from_pretrained(folder)


def with_adapter(model, folder, adapter):
    """What PEFT makes of a checkpoint and an adapter."""
    return peft.PeftModel.from_pretrained(loaded(model, folder), adapter).merge_and_unload()


def assert_same(found, wanted):
    """All tensors of two networks are the same to rounding."""
    found, wanted = found.state_dict(), wanted.state_dict()
    assert found.keys() == wanted.keys()
    off = [k for k, t in wanted.items() if not torch.allclose(found[k], t, atol=1e-4)]
    assert off == []


@pytest.mark.parametrize("name", FAMILIES)
def test_an_adapter_that_peft_trained_is_merged_as_peft_merges_it(tmp_path, name):
    model = build(name)
    save(model, tmp_path / "base")
    linear, parameters = targets(model)
    torch.manual_seed(1)
    config = peft.LoraConfig(
        r=2, lora_alpha=4, target_modules=linear, target_parameters=parameters or None
    )
    trained = peft.get_peft_model(loaded(model, tmp_path / "base"), config)
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    trained.save_pretrained(tmp_path / "lora")
    wanted = with_adapter(model, tmp_path / "base", tmp_path / "lora")
    recipe = {
        "weightsmith": 1,
        "merge_method": "linear",
        "models": [{"model": f"{tmp_path / 'base'}+{tmp_path / 'lora'}"}],
    }
    weightsmith.merge(recipe, tmp_path / "out")
    assert_same(loaded(model, tmp_path / "out"), wanted)


@pytest.mark.parametrize("name", FAMILIES)
def test_peft_applies_all_of_an_extracted_adapter(tmp_path, name):
    model = build(name)
    tuned = copy.deepcopy(model)
    linear, parameters = targets(model)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for key, parameter in tuned.named_parameters():
            if key in parameters or key.removesuffix(".weight") in linear:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    base = open_checkpoint(save(model, tmp_path / "base"))
    adapter, _ = extract(open_checkpoint(save(tuned, tmp_path / "tuned")), base, energy=1.0)
    write_adapter(adapter, tmp_path / "out", base=base)
    assert_same(with_adapter(model, tmp_path / "base", tmp_path / "out"), tuned)
