"""Names of Stable Diffusion's networks in single files and in diffusers: U-Nets, and OpenCLIP's text encoder.

A U-Net's blocks are one list each way in single files (LDM), and levels of residual blocks and attentions in diffusers;
both count in the same order, two residual blocks to a level down and three up. OpenCLIP keeps query, key and value in
one matrix, one above the other, which transformers has apart.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from weightsmith.adapters.adapter import Form, Update
from weightsmith.adapters.updates import loaded
from weightsmith.checkpoints import Checkpoint
from weightsmith.deltas import Change, LowRankChange
from weightsmith.errors import CompatibilityError
from weightsmith.tensors import shown

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
_OPENCLIP_PARTS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
_FUSED = re.compile(r"transformer\.resblocks\.(\d{1,3})\.attn\.in_proj_(weight|bias)")
_APART = re.compile(r"(.*self_attn[._])([qkv])_proj\.weight")


def respelled(part: Checkpoint) -> Checkpoint | None:
    """A part of a pipeline under the names of the other spelling; None where it has none that is known."""
    names: Callable[[str], str]
    if "time_embed.0.weight" in part.tensors or any(
        n.startswith("input_blocks.") for n in part.tensors
    ):
        names = to_diffusers
    elif any(name.startswith("down_blocks.") for name in part.tensors):
        with_attention = _levels_with_attention(part.tensors)
        names = lambda name: to_ldm(name, with_attention)  # noqa: E731
    elif any(name.startswith("transformer.resblocks.") for name in part.tensors):
        names = from_openclip
    else:
        return None
    return replace(
        part,
        tensors={names(name): tensor for name, tensor in part.tensors.items()},
        places={names(name): place for name, place in part.places.items()},
    )


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
    fused = _FUSED.fullmatch(name)
    if fused is not None:
        return f"text_model.encoder.layers.{fused[1]}.self_attn.qkv_proj.{fused[2]}"
    found = _OPENCLIP.fullmatch(name)
    if found is None:
        return name
    inner = _OPENCLIP_PARTS.get(found[2], found[2])
    return f"text_model.encoder.layers.{found[1]}.{inner}.{found[3]}"


def joined_projections(updates: Sequence[Update], part: Checkpoint) -> list[Update]:
    """The updates with those of query, key and value as one of the matrix that `part` keeps of all three.

    Raises CompatibilityError for such a one that is no product of low rank.
    """
    if not any(name.endswith("self_attn.qkv_proj.weight") for name in part.tensors):
        return list(updates)
    kept: list[Update] = []
    apart: dict[str, dict[str, Update]] = defaultdict(dict)
    for update in updates:
        found = _APART.fullmatch(update.target)
        if found is None:
            kept.append(update)
        else:
            apart[found[1]][found[2]] = update
    return [*kept, *(_joined(module, own) for module, own in apart.items())]


def _joined(module: str, own: Mapping[str, Update]) -> Update:
    for update in own.values():
        if update.form is not Form.LORA or update.magnitude is not None or update.shape is None:
            raise CompatibilityError(
                f"{shown(update.key)} is kept with two others in one matrix here, for which only plain LoRA is read: "
                "apply the adapter to the model of diffusers."
            )
    first = next(iter(own.values()))
    assert first.shape is not None
    rows, columns = first.shape[0], first.shape[1]

    def load() -> Change:
        lefts, rights = [], []
        for at, letter in enumerate("qkv"):
            change = None if letter not in own else loaded(own[letter])()
            if isinstance(change, LowRankChange):
                left = np.zeros((3 * rows, change.rank))
                left[at * rows : (at + 1) * rows] = change.left * change.scale
                lefts.append(left)
                rights.append(change.right)
        return LowRankChange(np.concatenate(lefts, axis=1), np.concatenate(rights, axis=0))

    return replace(
        first,
        target=f"{module}qkv_proj.weight",
        sources=tuple(source for update in own.values() for source in update.sources),
        load=load,
        shape=(3 * rows, columns),
    )


def _levels_with_attention(names: Iterable[str]) -> set[int]:
    found = (re.match(r"up_blocks\.(\d{1,3})\.attentions\.", name) for name in names)
    return {int(one[1]) for one in found if one is not None}


def _outside(name: str, known: Mapping[str, str]) -> str | None:
    return next((f"{known[m]}{name[len(m) :]}" for m in known if name.startswith(f"{m}.")), None)


def _swapped(rest: str, known: Mapping[str, str]) -> str:
    """A name in a residual block with the other word for its module."""
    return _outside(rest, known) or rest
