"""Files that the diffusers library writes: every tensor is the one that the library fuses."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from weightsmith.adapters.adapter_reading import open_adapter
from weightsmith.adapters.attaching import attach
from weightsmith.checkpoints import open_checkpoint
from weightsmith.deltas.changed import read_elements

peft = pytest.importorskip("peft")
diffusers = pytest.importorskip("diffusers")

pytestmark = pytest.mark.slow

MODULES = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "proj_in", "conv_shortcut"]


def unet():
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(4, 8),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=6,
        attention_head_dim=2,
        norm_num_groups=2,
    )


@pytest.mark.parametrize("with_metadata", [False, True])
@pytest.mark.parametrize("use_dora", [False, True])
def test_a_unets_file_gives_the_fused_unet(tmp_path, with_metadata, use_dora):
    model = unet()
    model.save_pretrained(tmp_path / "unet")
    # Without metadata the convention is that nothing is scaled, whatever the configuration was.
    alpha = 7 if with_metadata else 3
    config = peft.LoraConfig(r=3, lora_alpha=alpha, target_modules=MODULES, use_dora=use_dora)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.add_adapter(config)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
        layers = peft.get_peft_model_state_dict(model)
        metadata = {"unet_lora_adapter_metadata": config.to_dict()} if with_metadata else {}
        diffusers.StableDiffusionPipeline.save_lora_weights(
            tmp_path / "lora",
            unet_lora_layers=diffusers.utils.convert_state_dict_to_diffusers(layers),
            **metadata,
        )
        model.fuse_lora()
        model.unload_lora()
    expected = {name: t.detach().double().numpy() for name, t in model.state_dict().items()}
    base = open_checkpoint(tmp_path / "unet")
    adapter = open_adapter(tmp_path / "lora")
    seen = attach(base, [(adapter, 1.0)])
    assert adapter.dialect == "diffusers"
    assert len(adapter.updates) == len(layers) // (3 if use_dora else 2)
    for name, tensor in seen.tensors.items():
        found = read_elements(tensor, 0, tensor.numel).reshape(tensor.shape)
        np.testing.assert_allclose(found, expected[name], rtol=1e-5, atol=1e-6, err_msg=name)
