"""Labels of blocks: of names as they are known, and of the networks and conversions of diffusers."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from weightsmith.checkpoints import block_label, is_in_block, is_in_component, labels_in


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("model.diffusion_model.input_blocks.0.0.weight", "IN00"),
        ("model.diffusion_model.input_blocks.11.0.in_layers.0.weight", "IN11"),
        ("model.diffusion_model.middle_block.2.out_layers.3.bias", "M00"),
        ("model.diffusion_model.output_blocks.8.1.conv.weight", "OUT08"),
        ("model.diffusion_model.out.2.weight", "HEAD"),
        ("model.diffusion_model.label_emb.0.0.weight", "BASE"),
        ("model.diffusion_model.double_blocks.18.img_attn.qkv.weight", "D18"),
        ("double_blocks.3.txt_mlp.0.weight", "D03"),
        ("single_blocks.37.linear1.weight", "S37"),
        ("model.diffusion_model.joint_blocks.23.x_block.attn.qkv.weight", "D23"),
        ("model.diffusion_model.joint_blocks.105.x_block.attn.qkv.weight", "D105"),
        ("model.diffusion_model.layers.29.attention.qkv.weight", "D29"),
        ("blocks.4.self_attn.q.weight", "D04"),
        (
            "transformer/diffusion_pytorch_model.safetensors/single_transformer_blocks.2.proj_mlp.bias",
            "S02",
        ),
        ("unet/diffusion_pytorch_model.safetensors/up_blocks.1.upsamplers.0.conv.bias", "OUT05"),
        ("unet/diffusion_pytorch_model.safetensors/conv_out.bias", "HEAD"),
        # Parts that have blocks of their own are none of the denoiser's.
        ("first_stage_model.decoder.up.3.block.0.norm1.weight", "BASE"),
        (
            "vae/diffusion_pytorch_model.safetensors/decoder.up_blocks.0.resnets.0.conv1.weight",
            "BASE",
        ),
        ("text_encoder_2/model.safetensors/text_model.encoder.layers.0.mlp.fc1.weight", "BASE"),
        ("layers.0.mlp.fc1.weight", "BASE"),
    ],
)
def test_labels_of_known_names(name, label):
    assert block_label(name) == label


def test_families_and_ranges_select_their_blocks():
    name = "model.diffusion_model.input_blocks.7.0.in_layers.0.weight"
    assert is_in_block(name, "IN")
    assert not is_in_block(name, "M")
    assert not is_in_block("single_blocks.7.linear1.weight", "D")
    assert not is_in_block("model.diffusion_model.out.2.weight", "OUT")
    assert labels_in("OUT09-OUT11") == ("OUT09", "OUT10", "OUT11")
    assert labels_in(" M00 ") == ("M00",)


@pytest.mark.parametrize(
    ("name", "components"),
    [
        ("model.diffusion_model.out.2.weight", {"unet", "transformer"}),
        (
            "transformer/diffusion_pytorch_model.safetensors/proj_out.weight",
            {"unet", "transformer"},
        ),
        ("first_stage_model.quant_conv.weight", {"vae"}),
        ("conditioner.embedders.0.transformer.a.weight", {"text_encoder"}),
        ("conditioner.embedders.1.model.text_projection", {"text_encoder", "text_encoder_2"}),
        ("text_encoder_3/model.safetensors/shared.weight", {"text_encoder", "text_encoder_3"}),
        ("text_encoders.t5xxl.transformer.shared.weight", {"text_encoder"}),
        ("model.layers.0.mlp.up_proj.weight", set()),
    ],
)
def test_parts_of_known_names(name, components):
    words = ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "text_encoder_3")
    assert {word for word in words if is_in_component(name, word)} == components


def unet(levels: int, with_attention: tuple[bool, ...]):
    diffusers = pytest.importorskip("diffusers")
    down = ["CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in with_attention]
    up = ["CrossAttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(with_attention)]
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        layers_per_block=2,
        block_out_channels=(4,) * levels,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        cross_attention_dim=4,
        attention_head_dim=2,
        norm_num_groups=2,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "with_attention", [(True, True, True, False), (False, True, True)], ids=["sd15", "sdxl"]
)
def test_labels_are_the_same_before_and_after_the_conversion_of_diffusers(with_attention):
    levels = len(with_attention)
    theirs = set(unet(levels, with_attention).state_dict())
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    # Every name that a single file may have; the conversion takes what it knows, and its values tell from where.
    names = [*single_file_names(levels, with_attention)]
    tagged = {name: torch.tensor(float(i)) for i, name in enumerate(names)}
    config = SimpleNamespace(layers_per_block=2)
    converted = convert_ldm_unet_checkpoint(
        dict(tagged),
        {
            "layers_per_block": config.layers_per_block,
            "class_embed_type": None,
            "addition_embed_type": None,
        },
    )
    labels = Counter()
    for name, value in converted.items():
        own = names[int(value)].removeprefix("model.diffusion_model.")
        assert block_label(own) == block_label(name), (own, name)
        labels[block_label(name)] += 1
    count = 3 * levels
    expected = {f"{way}{i:02d}" for way in ("IN", "OUT") for i in range(count)}
    assert set(labels) == expected | {"M00", "HEAD", "BASE"}
    assert set(map(block_label, theirs)) == set(labels)


def single_file_names(levels: int, with_attention: tuple[bool, ...]):
    """The modules of a U-Net of two residual blocks to a level, as its authors' code numbers them."""
    residual = ("in_layers.2", "emb_layers.1", "out_layers.3", "skip_connection")
    attention = ("proj_in", "transformer_blocks.0.attn1.to_q")
    modules = ["time_embed.0", "time_embed.2", "input_blocks.0.0", "out.0", "out.2"]
    number = 1
    for level in range(levels):
        for _ in range(2):
            modules += [f"input_blocks.{number}.0.{one}" for one in residual]
            if with_attention[level]:
                modules += [f"input_blocks.{number}.1.{one}" for one in attention]
            number += 1
        if level < levels - 1:
            modules.append(f"input_blocks.{number}.0.op")
            number += 1
    for at in (0, 2):
        modules += [f"middle_block.{at}.{one}" for one in residual]
    modules += [f"middle_block.1.{one}" for one in attention]
    number = 0
    for level in reversed(range(levels)):
        for place in range(3):
            modules += [f"output_blocks.{number}.0.{one}" for one in residual]
            if with_attention[level]:
                modules += [f"output_blocks.{number}.1.{one}" for one in attention]
            if level and place == 2:
                modules.append(f"output_blocks.{number}.{1 + with_attention[level]}.conv")
            number += 1
    return (
        f"model.diffusion_model.{module}.{part}"
        for module in modules
        for part in ("weight", "bias")
    )


@pytest.mark.slow
def test_every_block_of_a_transformer_of_diffusers_has_its_label():
    diffusers = pytest.importorskip("diffusers")
    common = {"num_attention_heads": 2, "in_channels": 4}
    networks = {
        diffusers.FluxTransformer2DModel(
            **common, num_layers=2, num_single_layers=3, attention_head_dim=4, joint_attention_dim=8,
            pooled_projection_dim=8, axes_dims_rope=(2, 1, 1),
        ): {"D00", "D01", "S00", "S01", "S02"},
        diffusers.SD3Transformer2DModel(
            **common, sample_size=8, patch_size=2, num_layers=2, attention_head_dim=4, out_channels=4,
            joint_attention_dim=8, caption_projection_dim=8, pooled_projection_dim=8,
        ): {"D00", "D01"},
        diffusers.WanTransformer3DModel(
            **common, attention_head_dim=12, out_channels=4, text_dim=8, freq_dim=8, ffn_dim=8, num_layers=3
        ): {"D00", "D01", "D02"},
        diffusers.AuraFlowTransformer2DModel(
            **common, sample_size=8, patch_size=2, num_mmdit_layers=1, num_single_dit_layers=2, attention_head_dim=4,
            joint_attention_dim=8, caption_projection_dim=8, out_channels=4, pos_embed_max_size=16,
        ): {"D00", "S00", "S01"},
    }  # fmt: skip
    for network, blocks in networks.items():
        found = {block_label(name) for name in network.state_dict()}
        assert found - {"BASE", "HEAD"} == blocks, type(network).__name__
        inside = [
            n for n in network.state_dict() if "blocks." in n and block_label(n) in ("BASE", "HEAD")
        ]
        assert not inside, type(network).__name__
