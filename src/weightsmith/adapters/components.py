"""The parts of an image model's pipeline that a module can be in, as diffusers and kohya name them."""

from __future__ import annotations

UNET, TRANSFORMER, TEXT_ENCODER = "unet", "transformer", "text_encoder"
ENCODERS = (TEXT_ENCODER, "text_encoder_2", "text_encoder_3")
COMPONENTS = (UNET, TRANSFORMER, *ENCODERS)

# First fields of module paths by which a part is known where its name does not stand before them.
_FIRST = {
    "down_blocks": UNET,
    "mid_block": UNET,
    "up_blocks": UNET,
    "input_blocks": UNET,
    "middle_block": UNET,
    "output_blocks": UNET,
    "time_embedding": UNET,
    "conv_in": UNET,
    "conv_out": UNET,
    "transformer_blocks": TRANSFORMER,
    "single_transformer_blocks": TRANSFORMER,
    "text_model": TEXT_ENCODER,
}
_KOHYA = {
    UNET: "lora_unet",
    TRANSFORMER: "lora_unet",
    "text_encoder_2": "lora_te2",
    "text_encoder_3": "lora_te3",
}
# What the prefixes of kohya's files stand for; `lycoris` may be any part.
OF_KOHYA_PREFIX = {
    "lora_unet": UNET,
    "lora_transformer": TRANSFORMER,
    "lora_te": TEXT_ENCODER,
    "lora_te1": TEXT_ENCODER,
    "lora_te2": "text_encoder_2",
    "lora_te3": "text_encoder_3",
    "lycoris": None,
}


def split(module: str) -> tuple[str | None, str]:
    """The component that a module is in, and its path there; None where neither its name nor its place tells.

    Language models may call their own body `transformer`, so that counts only before the blocks of an image model.
    """
    first, _, rest = module.partition(".")
    is_image = rest.startswith(("transformer_blocks", "single_transformer_blocks"))
    if first in COMPONENTS and rest and (first != TRANSFORMER or is_image):
        return first, rest
    return _FIRST.get(first), module


def kohya_prefix(component: str | None, *, has_second: bool) -> str:
    """What kohya writes before the modules of a component: the first of several text encoders is `lora_te1`.

    Models that are no part of a pipeline get the prefix of the denoiser, as kohya gives it to all of them.
    """
    if component == TEXT_ENCODER:
        return "lora_te1" if has_second else "lora_te"
    return _KOHYA.get(component or UNET, "lora_unet")
