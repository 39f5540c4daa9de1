"""Which tensors of a checkpoint a module of a recipe means.

A module's name is a prefix of tensor names (`encoder`, `vision_tower`), one of the names that mergekit gives
the parts of known families, or `default`: all that no stack of blocks claims. A `match:` overrides the name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from weightsmith.recipes.language.schema import Module
from weightsmith.recipes.resolution.formula import OutputTensor
from weightsmith.recipes.resolution.views import View
from weightsmith.tensors import Kind

_TEXT = ("language_model", "text_model")
# Name prefixes of the parts that mergekit names, tried from top to bottom, because the projector
# of some families lies in the tower.
_PARTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "multi_modal_projector",
        ("multi_modal_projector", "mm_projector", "visual.merger", "connector"),
    ),
    ("vision_tower", ("vision_tower", "vision_model", "visual")),
    ("vision_model", ("vision_model", "vision_tower", "visual")),
    ("text_decoder", _TEXT),
    ("encoder", ("encoder",)),
    ("decoder", ("decoder",)),
    ("shared", ("shared",)),
)
_WRAPPERS = ("", "model.", "transformer.")
# What families call the parts that bring images and sound to the language model.
_OTHER_MODALITIES = (
    *("vision_tower", "vision_model", "visual", "vision_embed_tokens", "vpm", "embed_vision"),
    *("audio_tower", "audio_model", "embed_audio", "multi_modal_projector", "mm_projector"),
    *("img_projection", "audio_projector", "connector", "perceiver", "resampler", "aligner"),
    *("patch_merger", "mlp1", "image_newline", "view_seperator"),
)


@dataclass(frozen=True, slots=True)
class Split:
    """Names of tensors by module, those of no module, and the module names that the checkpoint offers."""

    names: dict[str, list[str]]
    leftover: list[str]
    known: tuple[str, ...]


def split_modules(view: View, modules: Mapping[str, Module]) -> Split:
    """Give every tensor to the first module that claims it; `default` claims last."""
    order = sorted(
        modules, key=lambda name: (name == "default", modules[name].match is None, _rank(name))
    )
    is_prefixed = any(_starts(name, prefix) for name in view.items for prefix in _TEXT)
    names: dict[str, list[str]] = {name: [] for name in modules}
    leftover: list[str] = []
    for item in view.items.values():
        owner = next(
            (name for name in order if _claims(name, modules[name], item, view, is_prefixed)), None
        )
        (leftover if owner is None else names[owner]).append(item.name)
    return Split(names, leftover, _known(view))


def _rank(name: str) -> int:
    return next((i for i, (part, _) in enumerate(_PARTS) if part == name), len(_PARTS))


def _claims(name: str, module: Module, item: OutputTensor, view: View, is_prefixed: bool) -> bool:
    if module.match is not None:
        return module.match.matches(item.place)
    if name == "default":
        stacks = view.stacks
        return len(stacks) <= 1 or not any(item.name.startswith(prefix + ".") for prefix in stacks)
    prefixes = next((prefixes for part, prefixes in _PARTS if part == name), (name,))
    if any(_starts(item.name, prefix) for prefix in prefixes):
        return True
    if name == "text_decoder":
        return _is_text(item, is_prefixed)
    # The head of an encoder-decoder scores what the decoder says.
    return (
        name == "decoder"
        and item.place.kind is Kind.HEAD
        and "." in item.name
        and item.place.stack is None
    )


def _is_text(item: OutputTensor, is_prefixed: bool) -> bool:
    """Whether a tensor without a text prefix is the language model's.

    Where others have such a prefix only a head is, else all but what belongs to other modalities.
    """
    others = _OTHER_MODALITIES
    if any(_starts(item.name, part) or item.name.endswith(part) for part in others):
        return False
    return not is_prefixed or (item.place.kind is Kind.HEAD and item.place.stack is None)


def _starts(name: str, prefix: str) -> bool:
    return any(name.startswith(f"{wrapper}{prefix}.") for wrapper in _WRAPPERS)


def _known(view: View) -> tuple[str, ...]:
    found = [
        part
        for part, prefixes in _PARTS
        for n in view.items
        if any(_starts(n, p) for p in prefixes)
    ]
    return tuple(dict.fromkeys([*found, *(prefix for prefix in view.stacks if prefix), "default"]))
