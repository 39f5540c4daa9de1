"""A configuration and the configurations nested in it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# The order in which nested sections are asked for the facts of the language model.
LANGUAGE_SECTIONS = (
    "text_config",
    "llm_config",
    "language_config",
    "decoder",
    "thinker_config",
)
# Number of blocks, per family; the first key that a section has counts.
LAYER_COUNT_KEYS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "decoder_layers",
    "encoder_layers",
    "num_decoder_layers",
    "num_blocks",
    "depth",
)
_ENCODER_KEYS = ("encoder_layers", "num_encoder_layers", "encoder_num_hidden_layers")
DECODER_KEYS = ("decoder_layers", "num_decoder_layers", "decoder_num_hidden_layers")
# Words in the prefix of a stack, and in the key of the section that describes it.
_SAME_PART = (
    ("vision", "visual", "image", "video"),
    ("audio", "speech"),
    ("text", "language", "llm"),
)


def sections(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The configuration, then every one nested in it, those of language models first."""
    for _, section in nested_sections(config):
        yield section


def nested_sections(config: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every configuration with the keys that lead to it, `vision_config` or `thinker_config.text_config`; own first."""
    yield path, config
    nested = [
        key
        for key, value in config.items()
        if isinstance(value, dict) and (key.endswith("_config") or key in ("encoder", "decoder"))
    ]
    for key in sorted(nested, key=lambda key: key not in LANGUAGE_SECTIONS):
        if key not in ("quantization_config", "generation_config"):
            yield from nested_sections(config[key], f"{path}.{key}" if path else key)


def first_of(config: dict[str, Any] | None, *keys: str) -> Any:
    """The value of the first of `keys` in the first section that has one of them, or None."""
    if config is None:
        return None
    for section in sections(config):
        for key in keys:
            if section.get(key) is not None:
                return section[key]
    return None


def layer_count_of(config: dict[str, Any] | None) -> int | None:
    """The number of blocks that a configuration declares, or None where it declares none."""
    count = first_of(config, *LAYER_COUNT_KEYS)
    return count if isinstance(count, int) else None


def vocabulary_size_of(config: dict[str, Any] | None) -> int | None:
    """The vocabulary size that a configuration declares, or None."""
    size = first_of(config, "vocab_size")
    return size if isinstance(size, int) else None


def is_decoder(stack: str) -> bool:
    """Whether a stack is that of a decoder and not of an encoder, which may be a part of something called decoder."""
    return stack.rfind("decoder") > stack.rfind("encoder")


def count_key(section: dict[str, Any], stack: str | None) -> str | None:
    """The key of a section that says how many layers the stack with this prefix has, or None."""
    preferred: tuple[str, ...] = ()
    if stack is not None and is_decoder(stack):
        preferred = DECODER_KEYS
    elif stack is not None and "encoder" in stack:
        preferred = _ENCODER_KEYS
    if isinstance(section.get("depths"), list):
        # Stages of different depths, whose number is all that the other keys say.
        return None
    keys = (*preferred, *LAYER_COUNT_KEYS)
    return next((key for key in keys if isinstance(section.get(key), int)), None)


def section_of_stack(config: dict[str, Any], stack: str | None) -> dict[str, Any]:
    """The section that describes a stack: the one that its prefix names most closely, else the first with a count."""
    counting = [(p, s) for p, s in nested_sections(config) if count_key(s, stack) is not None]
    named = [(_closeness(path, stack), -i, section) for i, (path, section) in enumerate(counting)]
    best = max(named, key=lambda entry: entry[:2], default=(0, 0, config))
    return best[2]


def _closeness(path: str, stack: str | None) -> int:
    """How many letters of the prefix of a stack the key of a section names."""
    if not path or stack is None:
        return 0
    stem = path.rpartition(".")[2].removesuffix("_config").removesuffix("_encoder")
    if stem in stack:
        return len(stem)
    for words in _SAME_PART:
        if any(word in stem for word in words):
            return max((len(word) for word in words if word in stack), default=0)
    return 0
