"""Files of the diffusers library: dotted keys behind the name of a pipeline's part, in its present and older words.

    unet.down_blocks.0.attentions.0.proj_in.lora_A.weight       (today; lora.down in between)
    text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_linear_layer.down.weight
    unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight

Without a configuration or alphas in the file, factors are not scaled.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from weightsmith.adapters.adapter import Update
from weightsmith.adapters.kohya_files import part_of
from weightsmith.adapters.module_parts import foreign, keep, module_updates
from weightsmith.adapters.peft_config import PeftConfig, checked_config
from weightsmith.adapters.updates import wrong
from weightsmith.tensors import LazyTensor

# The key of the configuration in the metadata of a file.
METADATA = "lora_adapter_metadata"
_COMPONENT = re.compile(
    r"^(unet|transformer|transformer_2|text_encoder|text_encoder_2|text_encoder_3|prior|decoder|image_encoder"
    r"|controlnet|diffusion_model)\."
)
_PAIR = re.compile(r"^(?P<module>.+)\.(?:lora|lora_linear_layer)\.(?P<side>down|up)\.weight$")
_ATTENTION = re.compile(
    r"^(?P<parent>.+?)(?:\.processor)?\.(?P<leaf>to_q|to_k|to_v|to_out|add_k_proj|add_v_proj)_lora"
    r"\.(?P<side>down|up)\.weight$"
)
_MAGNITUDE = re.compile(r"^(?P<module>.+)\.lora_magnitude_vector(?:\.weight)?$")
_PART = re.compile(
    r"^(?P<module>.+?)\.(?P<part>(?:lora_[AB](?:\.[^.]+)?|lora_down|lora_up|lora_mid)\.(?:weight|bias)"
    r"|alpha|dora_scale|diff|diff_b|w_norm|b_norm|hada_\w+|lokr_\w+)$"
)
# What attention's projections are called in text encoders.
_TEXT_LEAVES = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def diffusers_updates(
    tensors: Sequence[LazyTensor], config: Mapping[str, Any] | None, where: str
) -> dict[str, Update]:
    """What each tensor of a file does, by `Update.key`; `config` is what its metadata carries.

    Raises CheckpointError, naming the key, for one that is unknown, and as `module_updates` does.
    """
    modules: dict[tuple[str | None, str], dict[str, LazyTensor]] = {}
    for tensor in tensors:
        component, rest = _component(tensor.name)
        found = _parsed(rest, component)
        if found is None:
            raise foreign(tensor, rest.rpartition(".")[2])
        keep(modules.setdefault((component, found[0]), {}), found[1], tensor)
    configs = {c: _config(config, c, where) for c, _ in modules}
    updates: dict[str, Update] = {}
    for (component, module), parts in modules.items():
        checked = configs[component]
        scale = None if checked is None else checked.scale(module)
        for update in module_updates(module, parts, scale, component):
            if update.key in updates:
                raise wrong(
                    f"{update.sources[0].location} is one of two changes of {update.key!r}",
                    "save the adapter again",
                )
            updates[update.key] = update
    return updates


def _component(name: str) -> tuple[str | None, str]:
    found = _COMPONENT.match(name)
    if found is None:
        return None, name
    rest = name[found.end() :]
    # ComfyUI's word for whatever denoises.
    return (None if found[1] == "diffusion_model" else found[1]), rest


def _parsed(name: str, component: str | None) -> tuple[str, str] | None:
    """The module and the part, in kohya's words, that a key without its component means."""
    found = _ATTENTION.match(name)
    if found is not None:
        return f"{found['parent']}.{_leaf(found['leaf'], component)}", f"lora_{found['side']}"
    found = _PAIR.match(name)
    if found is not None:
        return found["module"], f"lora_{found['side']}"
    found = _MAGNITUDE.match(name)
    if found is not None:
        return found["module"], "dora_scale"
    found = _PART.match(name)
    if found is None:
        return None
    stem, *rest = found["part"].split(".")
    part = part_of(".".join([stem, *rest[-1:]]))
    return None if part is None else (found["module"], part)


def _leaf(leaf: str, component: str | None) -> str:
    if component is not None and component.startswith("text_encoder"):
        return _TEXT_LEAVES.get(leaf, leaf)
    return "to_out.0" if leaf == "to_out" else leaf


def _config(
    config: Mapping[str, Any] | None, component: str | None, where: str
) -> PeftConfig | None:
    if config is None:
        return None
    own = {}
    if component is not None:
        start = f"{component}."
        own = {key[len(start) :]: v for key, v in config.items() if key.startswith(start)}
    if not own and "r" in config:
        own = {key: value for key, value in config.items() if "." not in key}
    return checked_config({"peft_type": "LORA", **own}, where) if own else None
