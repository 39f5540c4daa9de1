"""The blocks of an image model's denoiser, and its parts, by the labels that people merge them by.

A U-Net's blocks have the labels of the Stable Diffusion interfaces: IN00 and on, M00, OUT00 and on. Single files (LDM)
count input_blocks, middle_block and output_blocks; diffusers has levels, of two residual blocks and a sampler down, and
of three residual blocks up, which are the same blocks in the same order:

    input_blocks.0  conv_in                     IN00
    input_blocks.N  down_blocks.L.resnets.P, .attentions.P       N = 3 L + P + 1
                    down_blocks.L.downsamplers                   N = 3 L + 3
    output_blocks.N up_blocks.L.resnets.P, .attentions.P         N = 3 L + P
                    up_blocks.L.upsamplers                       N = 3 L + 2
    out             conv_norm_out, conv_out     HEAD, what follows the last block

A diffusion transformer has D00 and on, and S00 and on where blocks of a single stream follow those of two. Whatever is
in none of these is BASE: text encoders, the VAE, embeddings of time, labels and patches.
"""

from __future__ import annotations

import functools
import re

BASE, HEAD = "BASE", "HEAD"
# What a label begins with: a family of blocks, which `block: IN` means all of.
FAMILIES = ("IN", "M", "OUT", "D", "S")
_LABEL = re.compile("(" + "|".join(FAMILIES) + ")([0-9]{2,3})")
_OTHERS = (BASE, HEAD, *FAMILIES)

DENOISER, VAE, TEXT_ENCODER = "unet", "vae", "text_encoder"
# The words for parts, and the part that each means; `text_encoder` means all of them.
COMPONENTS = {
    "unet": DENOISER,
    "transformer": DENOISER,
    "vae": VAE,
    "text_encoder": TEXT_ENCODER,
    "text_encoder_2": "text_encoder_2",
    "text_encoder_3": "text_encoder_3",
}
# Of two residual blocks and what samples down or up behind them.
_LEVEL = 3
_COUNTED = re.compile(
    r"(?:(?P<IN>input_blocks)|(?P<OUT>output_blocks)"
    r"|(?P<D>double_blocks|joint_blocks|transformer_blocks|joint_transformer_blocks|double_layers|blocks)"
    r"|(?P<S>single_blocks|single_transformer_blocks|single_layers))\.(?P<number>[0-9]{1,3})\."
)
_LEVELLED = re.compile(
    r"(?P<way>down|up)_blocks\.(?P<level>[0-9]{1,2})\."
    r"(?:(?:resnets|attentions)\.(?P<place>[0-9])|(?P<sampler>downsamplers|upsamplers))\."
)
# Of language models too, so it counts only where a part of an image model is meant.
_LAYERS = re.compile(r"layers\.([0-9]{1,3})\.")
_OUTSIDE = {
    "middle_block.": "M00",
    "mid_block.": "M00",
    "conv_in.": "IN00",
    "out.": HEAD,
    "conv_norm_out.": HEAD,
    "conv_out.": HEAD,
    "final_layer.": HEAD,
    "norm_out.": HEAD,
    "proj_out.": HEAD,
    "head.": HEAD,
}
_IN_SINGLE_FILES = {
    "model.diffusion_model.": DENOISER,
    "first_stage_model.": VAE,
    "vae.": VAE,
    "cond_stage_model.": TEXT_ENCODER,
    "conditioner.embedders.0.": TEXT_ENCODER,
    "conditioner.embedders.1.": "text_encoder_2",
    "text_encoders.clip_g.": "text_encoder_2",
    "text_encoders.": TEXT_ENCODER,
}
_FOLDER = re.compile(r"(unet|transformer|vae|text_encoder(?:_[23])?)/[^/]+/")


def component_and_rest(name: str) -> tuple[str | None, str]:
    """The part of an image model that a tensor is in, by its name, and its name there; None where it does not tell."""
    found = _FOLDER.match(name)
    if found is not None:
        return COMPONENTS[found[1]], name[found.end() :]
    for prefix, component in _IN_SINGLE_FILES.items():
        if name.startswith(prefix):
            return component, name[len(prefix) :]
    return None, name


def is_component_file(file: str) -> bool:
    """Whether a file, named from a folder on, has the weights of a component, which diffusers reads in shards too."""
    return file.endswith(".safetensors") and _FOLDER.fullmatch(f"{file}/") is not None


def is_in_component(name: str, component: str) -> bool:
    """Whether a tensor is in the part that a word of `COMPONENTS` means."""
    own, meant = component_and_rest(name)[0], COMPONENTS[component]
    return own == meant or (meant == TEXT_ENCODER and own is not None and own.startswith(meant))


@functools.lru_cache(maxsize=1 << 14)
def block_label(name: str) -> str:
    """The label of the block that a tensor is in, by its name in a single file or in a folder of diffusers."""
    component, rest = component_and_rest(name)
    if component not in (None, DENOISER):
        return BASE
    counted = _COUNTED.match(rest)
    if counted is not None:
        return _numbered(_family(counted), int(counted["number"]))
    layers = _LAYERS.match(rest)
    if layers is not None and component == DENOISER:
        return _numbered("D", int(layers[1]))
    levelled = _LEVELLED.match(rest)
    if levelled is not None:
        return _of_level(levelled)
    return next((label for start, label in _OUTSIDE.items() if rest.startswith(start)), BASE)


@functools.lru_cache(maxsize=1 << 10)
def labels_in(text: str) -> tuple[str, ...]:
    """The labels that a text means: a label, a family, or a range in a family such as `IN04-IN08`, ends included.

    Raises ValueError for anything else.
    """
    first, dash, last = (part.strip() for part in text.partition("-"))
    low, high = _LABEL.fullmatch(first), _LABEL.fullmatch(last)
    if not dash and (low is not None or first in _OTHERS):
        return (first,)
    if low is None or high is None or low[1] != high[1] or int(low[2]) > int(high[2]):
        raise ValueError(
            f"there is no block {text!r}; blocks are IN00, M00, OUT00, D00, S00 and on, families (IN), ranges in a "
            "family (IN04-IN08), BASE and HEAD"
        )
    return tuple(_numbered(low[1], number) for number in range(int(low[2]), int(high[2]) + 1))


def is_in_block(name: str, label: str) -> bool:
    """Whether a tensor is in a block, or in one of a family such as `IN`."""
    own = block_label(name)
    return own == label or (label in FAMILIES and own.rstrip("0123456789") == label)


def _family(found: re.Match[str]) -> str:
    return next(family for family in ("IN", "OUT", "D", "S") if found[family])


def _of_level(found: re.Match[str]) -> str:
    is_down, start = found["way"] == "down", _LEVEL * int(found["level"])
    place = _LEVEL - 1 if found["sampler"] else int(found["place"])
    return _numbered("IN" if is_down else "OUT", start + place + is_down)


def _numbered(family: str, number: int) -> str:
    return f"{family}{number:02d}"
