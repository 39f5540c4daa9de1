"""The configuration of a merged checkpoint, made from its config source's."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from weightsmith.checkpoints.layer_keys import move_layers
from weightsmith.checkpoints.nested_config import LAYER_COUNT_KEYS, sections, vocabulary_size_of
from weightsmith.checkpoints.quantised_codes import code_findings
from weightsmith.errors import CompatibilityError
from weightsmith.findings import Finding, Severity
from weightsmith.tensors import DType, LazyTensor

_DTYPE_KEYS = ("torch_dtype", "dtype")
_QUANTISATION_KEYS = ("quantization_config", "compression_config")
# The release of transformers that began to write `dtype`.
_DTYPE_KEY_SINCE = (4, 56)
_SECTION_OF_STACK = (
    (("vision", "visual"), "vision_config"),
    (("audio",), "audio_config"),
    (("text", "language"), "text_config"),
)
_ENCODER_KEYS = ("encoder_layers", "num_encoder_layers")
_DECODER_KEYS = ("decoder_layers", "num_decoder_layers")
_ALIASES = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def merged_config(
    source_config: dict[str, Any],
    *,
    dtype: DType | None = None,
    layer_sources: Sequence[int] | None = None,
    vocab_size: int | None = None,
    tied: bool | None = None,
    stack: str | None = None,
) -> dict[str, Any]:
    """The config source's configuration made true for the merged weights; the config source's is not changed.

    `dtype` is that of most float tensors; `layer_sources[j]` the config source's layer that layer j
    describes itself by, in the stack with the prefix `stack` (default: the language model's or
    only one); `vocab_size` the rows of the embedding; `tied` whether the output head is the
    embedding. None leaves the config source's value. The folder that the config source was loaded from is dropped.
    Raises CompatibilityError for a quantised config source and for layer orders that its configuration
    cannot express.
    """
    _refuse_quantised(source_config)
    config = copy.deepcopy(source_config)
    if layer_sources is not None:
        _set_layers(config, layer_sources, stack)
    if dtype is not None:
        _set_dtype(config, dtype)
    if vocab_size is not None:
        old = vocabulary_size_of(config)
        for section in sections(config):
            if section.get("vocab_size") == old and old is not None:
                section["vocab_size"] = vocab_size
    if tied is not None:
        _set_tied(config, tied)
    for section in sections(config):
        section.pop("_name_or_path", None)
    return config


def input_findings(
    config: dict[str, Any] | None, tensors: Mapping[str, LazyTensor], identity: str
) -> list[Finding]:
    """What a checkpoint's configuration and tensors say against merging it: quantised weights, custom code."""
    declared = _declared(config, identity)
    is_known = any(finding.code == "quantised" for finding in declared)
    return declared if is_known else [*code_findings(tensors, identity), *declared]


def _declared(config: dict[str, Any] | None, identity: str) -> list[Finding]:
    if config is None:
        return []
    findings = []
    for section in sections(config):
        key = next((key for key in _QUANTISATION_KEYS if section.get(key)), None)
        if key is not None:
            method = section[key].get("quant_method") if isinstance(section[key], dict) else None
            findings.append(
                Finding(
                    Severity.ERROR,
                    "quantised",
                    identity,
                    f"{identity} is quantised ({method or key}), and packed numbers cannot be "
                    "combined",
                    "dequantise it to bfloat16 first, or use the original weights",
                )
            )
    if config.get("auto_map"):
        findings.append(
            Finding(
                Severity.WARNING,
                "custom-code",
                identity,
                f"{identity} names Python code of its own (`auto_map`), which is never run nor "
                "copied",
                "read that code and copy it beside the merged weights yourself if you trust it",
            )
        )
    return findings


def _refuse_quantised(config: dict[str, Any]) -> None:
    for finding in _declared(config, "The source of the configuration"):
        if finding.severity is Severity.ERROR:
            raise CompatibilityError(finding.sentence + ".")


def _set_layers(config: dict[str, Any], sources: Sequence[int], stack: str | None) -> None:
    section = _section_of(config, stack)
    key = _count_key(section, stack)
    if key is None:
        raise CompatibilityError(
            "The configuration has no number of layers that could be changed "
            f"(looked for {', '.join(LAYER_COUNT_KEYS)}): merge without slices, or choose another "
            "model as `donor`."
        )
    count = section[key]
    if len(sources) != count or any(i != source for i, source in enumerate(sources)):
        section.update(move_layers(section, count, sources))
    if key == "num_layers" and section.get("is_encoder_decoder"):
        # A decoder without a number of its own takes the encoder's; only one of the two changes.
        decoder = stack is not None and "decoder" in stack
        section.setdefault("num_decoder_layers", count)
        section["num_decoder_layers" if decoder else "num_layers"] = len(sources)
        return
    aliases = () if key in _DECODER_KEYS else _ALIASES
    for alias in (key, *aliases):
        if section.get(alias) == count:
            section[alias] = len(sources)


def _section_of(config: dict[str, Any], stack: str | None) -> dict[str, Any]:
    """The section that describes a stack: the one its prefix names, else the first with a count."""
    for words, name in _SECTION_OF_STACK:
        if stack is not None and any(word in stack for word in words):
            named = config.get(name)
            if isinstance(named, dict):
                return named
    return next((s for s in sections(config) if _count_key(s, stack) is not None), config)


def _count_key(section: dict[str, Any], stack: str | None) -> str | None:
    preferred: tuple[str, ...] = ()
    if stack is not None and "decoder" in stack:
        preferred = _DECODER_KEYS
    elif stack is not None and "encoder" in stack:
        preferred = _ENCODER_KEYS
    keys = (*preferred, *LAYER_COUNT_KEYS)
    return next((key for key in keys if isinstance(section.get(key), int)), None)


def _set_dtype(config: dict[str, Any], dtype: DType) -> None:
    present = [key for key in _DTYPE_KEYS if key in config]
    if not present and "model_type" in config:
        present = [_dtype_key(str(config.get("transformers_version", "")))]
    for key in present:
        config[key] = dtype.value
    for section in sections(config):
        for key in _DTYPE_KEYS:
            if isinstance(section.get(key), str):
                section[key] = dtype.value


def _dtype_key(version: str) -> str:
    numbers = [int(field) for field in version.split(".")[:2] if field.isdigit()]
    return "dtype" if tuple(numbers) >= _DTYPE_KEY_SINCE else "torch_dtype"


def _set_tied(config: dict[str, Any], tied: bool) -> None:
    holders = [section for section in sections(config) if "tie_word_embeddings" in section]
    if not holders and "model_type" in config:
        holders = [config]
    for section in holders:
        section["tie_word_embeddings"] = tied
