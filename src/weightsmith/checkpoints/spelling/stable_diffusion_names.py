"""Names of Stable Diffusion's networks in single files (LDM) and in diffusers: U-Net, VAE, and OpenCLIP's text encoder.

A U-Net's blocks are one list each way in single files, and levels of residual blocks and attentions in diffusers;
both count in the same order, two residual blocks to a level down and three up. A VAE's levels up are counted from the
image in single files and towards it in diffusers. OpenCLIP keeps query, key and value in one matrix, one above the
other, which transformers has apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

# Residual blocks of a level on the way down, with one sampler behind them; up has one block more.
_LEVEL = 3
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_OUTSIDE = {
    "input_blocks.0.0": "conv_in",
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
_LDM_BLOCK = re.compile(r"(input|output)_blocks\.(\d{1,3})\.(\d)\.(.+)")
_DIFFUSERS_BLOCK = re.compile(
    r"(down|up)_blocks\.(\d{1,3})\.(resnets|attentions|downsamplers|upsamplers)\.(\d{1,3})\.(.+)"
)
_OPENCLIP = re.compile(r"transformer\.resblocks\.(\d{1,3})\.(.+)\.(weight|bias)")
_OPENCLIP_OUTSIDE = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
}
_OPENCLIP_PARTS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_FUSED = re.compile(r"transformer\.resblocks\.(\d{1,3})\.attn\.in_proj_(weight|bias)")
_VAE_OUTSIDE = {
    "encoder.norm_out": "encoder.conv_norm_out",
    "decoder.norm_out": "decoder.conv_norm_out",
}
_VAE_MIDDLE = {"block_1": "resnets.0", "attn_1": "attentions.0", "block_2": "resnets.1"}
_VAE_ATTENTION = {
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
    # What diffusers itself called them until 0.17.
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
}
_VAE_LEVEL = re.compile(
    r"(encoder|decoder)\.(down|up)\.(\d{1,3})\.(block|downsample|upsample)\.(?:(\d{1,3})\.)?(.+)"
)
_VAE_MID = re.compile(r"(encoder|decoder)\.mid\.(block_1|attn_1|block_2)\.(.+)")
_VAE_MID_ATTENTION = re.compile(r"((?:encoder|decoder)\.mid_block\.attentions\.0)\.(.+)")


def to_diffusers(name: str) -> str:
    """What diffusers calls a tensor of a U-Net in a single file."""
    outside = _outside(name, _OUTSIDE)
    if outside is not None:
        return outside
    if name.startswith("middle_block."):
        at, _, rest = name.removeprefix("middle_block.").partition(".")
        return f"mid_block.{_MIDDLE.get(at, at)}.{rest if at == '1' else _swapped(rest, _RESNET)}"
    found = _LDM_BLOCK.fullmatch(name)
    if found is None:
        return name
    way, number, kind, rest = found[1], int(found[2]), found[3], found[4]
    if way == "input":
        if rest.startswith("op."):
            return f"down_blocks.{number // _LEVEL - 1}.downsamplers.0.conv.{rest[3:]}"
        level, place = divmod(number - 1, _LEVEL)
    else:
        level, place = divmod(number, _LEVEL)
        if rest.startswith("conv."):
            return f"up_blocks.{level}.upsamplers.0.{rest}"
    side = "down" if way == "input" else "up"
    if kind == "0":
        return f"{side}_blocks.{level}.resnets.{place}.{_swapped(rest, _RESNET)}"
    return f"{side}_blocks.{level}.attentions.{place}.{rest}"


def to_ldm(name: str, with_attention: set[int]) -> str:
    """What single files call a tensor of diffusers' U-Net; `with_attention` are the levels up that have attentions."""
    outside = _outside(name, {theirs: ours for ours, theirs in _OUTSIDE.items()})
    if outside is not None:
        return outside
    back = {theirs: ours for ours, theirs in _RESNET.items()}
    for at, theirs in _MIDDLE.items():
        start = f"mid_block.{theirs}."
        if name.startswith(start):
            rest = name.removeprefix(start)
            return f"middle_block.{at}.{rest if at == '1' else _swapped(rest, back)}"
    found = _DIFFUSERS_BLOCK.fullmatch(name)
    if found is None:
        return name
    side, level, kind, place, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    if kind == "downsamplers":
        return f"input_blocks.{_LEVEL * (level + 1)}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        return f"output_blocks.{_LEVEL * level + _LEVEL - 1}.{1 + (level in with_attention)}.{rest}"
    number = _LEVEL * level + place + (side == "down")
    way = "input" if side == "down" else "output"
    inner = _swapped(rest, back) if kind == "resnets" else rest
    return f"{way}_blocks.{number}.{int(kind == 'attentions')}.{inner}"


def from_openclip(name: str) -> str:
    """What transformers calls a tensor of OpenCLIP's text encoder; fused projections are `self_attn.qkv_proj`."""
    if name in _OPENCLIP_OUTSIDE:
        return _OPENCLIP_OUTSIDE[name]
    fused = _FUSED.fullmatch(name)
    if fused is not None:
        return f"text_model.encoder.layers.{fused[1]}.self_attn.qkv_proj.{fused[2]}"
    found = _OPENCLIP.fullmatch(name)
    if found is None:
        return name
    inner = _OPENCLIP_PARTS.get(found[2], found[2])
    return f"text_model.encoder.layers.{found[1]}.{inner}.{found[3]}"


def vae_levels(names: Iterable[str]) -> int:
    """How many levels the decoder of a VAE in a single file has."""
    found = (re.match(r"decoder\.up\.(\d{1,3})\.", name) for name in names)
    return 1 + max((int(one[1]) for one in found if one is not None), default=-1)


def vae_to_diffusers(name: str, levels: int) -> str:
    """What diffusers calls a tensor of a VAE with so many levels, of a single file or of an earlier diffusers."""
    outside = _outside(name, _VAE_OUTSIDE)
    if outside is not None:
        return outside
    attention = _VAE_MID_ATTENTION.fullmatch(name)
    if attention is not None:
        return f"{attention[1]}.{_swapped(attention[2], _VAE_ATTENTION)}"
    middle = _VAE_MID.fullmatch(name)
    if middle is not None:
        known = _VAE_ATTENTION if middle[2] == "attn_1" else {"nin_shortcut": "conv_shortcut"}
        return f"{middle[1]}.mid_block.{_VAE_MIDDLE[middle[2]]}.{_swapped(middle[3], known)}"
    found = _VAE_LEVEL.fullmatch(name)
    if found is None:
        return name
    side, way, number, kind, place, rest = found.groups()
    level = int(number) if way == "down" else levels - 1 - int(number)
    if kind == "block":
        inner = _swapped(rest, {"nin_shortcut": "conv_shortcut"})
        return f"{side}.{way}_blocks.{level}.resnets.{place}.{inner}"
    return f"{side}.{way}_blocks.{level}.{way}samplers.0.{rest}"


def levels_with_attention(names: Iterable[str]) -> set[int]:
    """The levels up of diffusers' U-Net that have attentions."""
    found = (re.match(r"up_blocks\.(\d{1,3})\.attentions\.", name) for name in names)
    return {int(one[1]) for one in found if one is not None}


def _outside(name: str, known: Mapping[str, str]) -> str | None:
    return next((f"{known[m]}{name[len(m) :]}" for m in known if name.startswith(f"{m}.")), None)


def _swapped(rest: str, known: Mapping[str, str]) -> str:
    """A name in a residual block with the other word for its module."""
    return _outside(rest, known) or rest
