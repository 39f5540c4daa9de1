"""Where the parts of a pipeline lie in a base that has several: below a prefix of names, or in folders of their own.

model.diffusion_model.              the denoiser in single files of image models
conditioner.embedders.0.transformer.   a text encoder there
unet/diffusion_pytorch_model.safetensors/   a component's file in a folder of diffusers
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from weightsmith.adapters.components import TEXT_ENCODER, TRANSFORMER, UNET
from weightsmith.checkpoints import Checkpoint

_DENOISER = ("model.diffusion_model.",)
# Single files of Stable Diffusion 1 and 2, XL, 3 and Flux, as their authors and ComfyUI write them.
_PREFIXES = {
    UNET: _DENOISER,
    TRANSFORMER: _DENOISER,
    TEXT_ENCODER: (
        "cond_stage_model.transformer.",
        "conditioner.embedders.0.transformer.",
        "text_encoders.clip_l.transformer.",
    ),
    "text_encoder_2": (
        "conditioner.embedders.1.model.",
        "text_encoders.clip_g.transformer.",
        "text_encoders.t5xxl.transformer.",
    ),
    "text_encoder_3": ("text_encoders.t5xxl.transformer.",),
}
# kohya calls every denoiser a U-Net, and T5 the third encoder, which is the second in diffusers' folders of Flux.
_FOLDERS = {
    UNET: (UNET, TRANSFORMER),
    TRANSFORMER: (TRANSFORMER, UNET),
    "text_encoder_3": ("text_encoder_3", "text_encoder_2"),
}


def component_of(base: Checkpoint, component: str | None) -> Checkpoint | None:
    """The part of a base as a checkpoint under its own names, or None where the base has no place of its own for it.

    Its tensors are the base's, which know their whole names.
    """
    if component is None:
        return None
    prefix = next(_prefixes(base, component), None)
    if prefix is None:
        return None
    return replace(
        base,
        tensors={
            n.removeprefix(prefix): t for n, t in base.tensors.items() if n.startswith(prefix)
        },
        places={n.removeprefix(prefix): p for n, p in base.places.items() if n.startswith(prefix)},
        ties=(),
        config=None,
    )


def _prefixes(base: Checkpoint, component: str) -> Iterator[str]:
    """Those of the component that tensors of the base have."""
    for folder in _FOLDERS.get(component, (component,)):
        yield from (f"{f}/" for f in base.side_files if f.partition("/")[0] == folder)
    for prefix in _PREFIXES.get(component, ()):
        if any(name.startswith(prefix) for name in base.tensors):
            yield prefix
