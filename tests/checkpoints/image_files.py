"""Tiny image models as their authors' single files have them, and as diffusers' own converters make folders of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
import transformers
from diffusers.loaders import single_file_utils as converters
from safetensors.torch import save_file

from weightsmith.checkpoints import levels_with_attention, to_ldm

Tensors = dict[str, torch.Tensor]
CLIP = {
    "vocab_size": 12,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 6,
}
_UNET = "model.diffusion_model."
_VAE = "first_stage_model."


def unet(*, xl: bool) -> Any:
    """diffusers' own network with two levels."""
    more = {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 32,
        "use_linear_projection": True,
    }
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=8,
        norm_num_groups=4,
        attention_head_dim=4,
        **(more if xl else {}),
    )


def vae() -> Any:
    """diffusers' own network with two levels."""
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
    )


def _random(shapes: Mapping[str, tuple[int, ...]], seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def vae_shapes() -> dict[str, tuple[int, ...]]:
    """What the authors call the VAE's tensors; the widths are those of `vae`."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name: str, rows: int, columns: int, points: int = 3) -> None:
        shapes[f"{name}.weight"] = (rows, columns, points, points)
        shapes[f"{name}.bias"] = (rows,)

    def norm(name: str, size: int) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (size,)

    def block(name: str, before: int, after: int) -> None:
        norm(f"{name}.norm1", before)
        conv(f"{name}.conv1", after, before)
        norm(f"{name}.norm2", after)
        conv(f"{name}.conv2", after, after)
        if before != after:
            conv(f"{name}.nin_shortcut", after, before, 1)

    def middle(side: str) -> None:
        block(f"{side}.mid.block_1", 16, 16)
        block(f"{side}.mid.block_2", 16, 16)
        norm(f"{side}.mid.attn_1.norm", 16)
        for part in ("q", "k", "v", "proj_out"):
            conv(f"{side}.mid.attn_1.{part}", 16, 16, 1)

    conv("encoder.conv_in", 8, 3)
    block("encoder.down.0.block.0", 8, 8)
    conv("encoder.down.0.downsample.conv", 8, 8)
    block("encoder.down.1.block.0", 8, 16)
    middle("encoder")
    norm("encoder.norm_out", 16)
    conv("encoder.conv_out", 8, 16)
    conv("quant_conv", 8, 8, 1)
    conv("post_quant_conv", 4, 4, 1)
    conv("decoder.conv_in", 16, 4)
    middle("decoder")
    block("decoder.up.1.block.0", 16, 16)
    block("decoder.up.1.block.1", 16, 16)
    conv("decoder.up.1.upsample.conv", 16, 16)
    block("decoder.up.0.block.0", 16, 8)
    block("decoder.up.0.block.1", 8, 8)
    norm("decoder.norm_out", 8)
    conv("decoder.conv_out", 3, 8)
    return shapes


def openclip_shapes() -> dict[str, tuple[int, ...]]:
    """What OpenCLIP calls the tensors of a text encoder with two layers."""
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (6, 8),
        "token_embedding.weight": (12, 8),
        "ln_final.weight": (8,),
        "ln_final.bias": (8,),
        "text_projection": (8, 8),
        "logit_scale": (),
    }
    for layer in range(2):
        start = f"transformer.resblocks.{layer}."
        for name in ("ln_1", "ln_2"):
            shapes[f"{start}{name}.weight"] = shapes[f"{start}{name}.bias"] = (8,)
        shapes[f"{start}attn.in_proj_weight"] = (24, 8)
        shapes[f"{start}attn.in_proj_bias"] = (24,)
        for name, rows, columns in (
            ("attn.out_proj", 8, 8),
            ("mlp.c_fc", 12, 8),
            ("mlp.c_proj", 8, 12),
        ):
            shapes[f"{start}{name}.weight"] = (rows, columns)
            shapes[f"{start}{name}.bias"] = (rows,)
    return shapes


def clip_shapes() -> dict[str, tuple[int, ...]]:
    """What transformers 4 called the tensors of CLIP's text encoder, which single files have kept."""
    model = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**CLIP))
    found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    return {name: shape for name, shape in found.items() if name.startswith("text_model.")}


def single_file(seed: int, *, xl: bool) -> Tensors:
    """Stable Diffusion 1 or XL, as its authors store it."""
    own = {name: tuple(tensor.shape) for name, tensor in unet(xl=xl).state_dict().items()}
    levels = levels_with_attention(own)
    shapes = {_UNET + to_ldm(name, levels): shape for name, shape in own.items()}
    shapes |= {_VAE + name: shape for name, shape in vae_shapes().items()}
    first = "conditioner.embedders.0.transformer." if xl else "cond_stage_model.transformer."
    shapes |= {first + name: shape for name, shape in clip_shapes().items()}
    if xl:
        second = "conditioner.embedders.1.model."
        shapes |= {second + name: shape for name, shape in openclip_shapes().items()}
    tensors = _random(shapes, seed)
    if xl:
        # No folder has it, and nobody trains it.
        tensors["conditioner.embedders.1.model.logit_scale"] = torch.tensor(4.6)
    tensors[f"{first}text_model.embeddings.position_ids"] = torch.arange(6)[None]
    tensors["alphas_cumprod"] = torch.linspace(1, 0, 10)
    return tensors


def as_components(single: Tensors, *, xl: bool) -> dict[str, Tensors]:
    """The components that diffusers' own converters make of a single file."""
    network = unet(xl=xl)
    found = {
        "unet": converters.convert_ldm_unet_checkpoint(dict(single), network.config),
        "vae": converters.convert_ldm_vae_checkpoint(dict(single), vae().config),
        "text_encoder": converters.convert_ldm_clip_checkpoint(dict(single)),
    }
    found["text_encoder"].pop("text_model.embeddings.position_ids")
    if xl:
        found["text_encoder_2"] = converters.convert_open_clip_checkpoint(
            SimpleNamespace(config=SimpleNamespace(hidden_size=8)),
            dict(single),
            prefix="conditioner.embedders.1.model.",
        )
    return found


def write_single(file: Path, tensors: Tensors) -> Path:
    """A single file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return file


def write_pipeline(folder: Path, components: Mapping[str, Tensors]) -> Path:
    """A folder as diffusers has it."""
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline"}
    for name, tensors in components.items():
        of_text = name.startswith("text_encoder")
        index[name] = ["transformers", "CLIPTextModel"] if of_text else ["diffusers", "Model"]
        file = "model.safetensors" if of_text else "diffusion_pytorch_model.safetensors"
        write_single(folder / name / file, dict(tensors))
        (folder / name / "config.json").write_text("{}")
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def flux_file(seed: int) -> Tensors:
    """Flux as its authors store it, with one block of each kind; the converter knows one inner width alone."""
    width, wide = 3072, 12288
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, rows: int = 4, columns: int = 3) -> None:
        shapes[f"{name}.weight"] = (rows, columns)
        shapes[f"{name}.bias"] = (rows,)

    for name in ("img_in", "txt_in", "final_layer.linear", "final_layer.adaLN_modulation.1"):
        linear(name)
    for name in ("time_in", "vector_in", "guidance_in"):
        linear(f"{name}.in_layer")
        linear(f"{name}.out_layer")
    for side in ("img", "txt"):
        start = f"double_blocks.0.{side}_"
        for name in ("mod.lin", "attn.proj", "mlp.0", "mlp.2"):
            linear(start + name)
        linear(f"{start}attn.qkv", 12)
        for name in ("query_norm", "key_norm"):
            shapes[f"{start}attn.norm.{name}.scale"] = (4,)
    linear("single_blocks.0.linear1", 3 * width + wide, 1)
    linear("single_blocks.0.linear2")
    linear("single_blocks.0.modulation.lin")
    for name in ("query_norm", "key_norm"):
        shapes[f"single_blocks.0.norm.{name}.scale"] = (4,)
    return _random(shapes, seed)


def wan_file(seed: int) -> Tensors:
    """Wan's network from images to video, as its authors store it, with two blocks."""
    shapes: dict[str, tuple[int, ...]] = {"patch_embedding.weight": (4, 3, 1, 2, 2)}
    shapes["patch_embedding.bias"] = (4,)
    for name in ("time_embedding.0", "time_embedding.2", "text_embedding.0", "text_embedding.2"):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (4, 4), (4,)
    for name in ("time_projection.1", "img_emb.proj.1", "img_emb.proj.3", "head.head"):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (4, 4), (4,)
    for name in ("img_emb.proj.0", "img_emb.proj.4"):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (4,)
    shapes["head.modulation"] = (1, 2, 4)
    for block in ("blocks.0", "blocks.1"):
        shapes[f"{block}.modulation"] = (1, 6, 4)
        shapes[f"{block}.norm3.weight"] = shapes[f"{block}.norm3.bias"] = (4,)
        for name in ("self_attn", "cross_attn"):
            for part in ("q", "k", "v", "o"):
                shapes[f"{block}.{name}.{part}.weight"] = (4, 4)
                shapes[f"{block}.{name}.{part}.bias"] = (4,)
            shapes[f"{block}.{name}.norm_q.weight"] = shapes[f"{block}.{name}.norm_k.weight"] = (4,)
        for part in ("k_img", "v_img", "norm_k_img"):
            shapes[f"{block}.cross_attn.{part}.weight"] = (4,) if "norm" in part else (4, 4)
            if "norm" not in part:
                shapes[f"{block}.cross_attn.{part}.bias"] = (4,)
        for part in ("ffn.0", "ffn.2"):
            shapes[f"{block}.{part}.weight"], shapes[f"{block}.{part}.bias"] = (4, 4), (4,)
    return _random(shapes, seed)
