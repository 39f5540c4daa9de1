"""The configuration of a merged checkpoint, made from its config source's."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from weightsmith.checkpoints.layer_keys import (
    COUNTING_LISTS,
    layer_kinds,
    move_layers,
    refuse_shared_count,
)
from weightsmith.checkpoints.layer_structure import LayerStructure, require_movable
from weightsmith.checkpoints.nested_config import (
    DECODER_KEYS,
    LAYER_COUNT_KEYS,
    count_key,
    is_decoder,
    section_of_stack,
    sections,
    vocabulary_size_of,
)
from weightsmith.checkpoints.quantised_codes import code_findings
from weightsmith.errors import CompatibilityError
from weightsmith.findings import Finding, Severity
from weightsmith.tensors import DType, LazyTensor

_DTYPE_KEYS = ("torch_dtype", "dtype")
_QUANTISATION_KEYS = ("quantization_config", "compression_config")
# The release of transformers that began to write `dtype`.
_DTYPE_KEY_SINCE = (4, 56)
_FURTHER = "num_nextn_predict_layers"
_ALIASES = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks")


def merged_config(
    source_config: dict[str, Any],
    *,
    dtype: DType | None = None,
    layer_sources: Sequence[int] | None = None,
    vocab_size: int | None = None,
    tied: bool | None = None,
    stack: str | None = None,
    structure: LayerStructure | None = None,
    further_layers: int | None = None,
) -> dict[str, Any]:
    """The config source's configuration made true for the merged weights; the config source's is not changed.

    `dtype` is that of most float tensors; `layer_sources[j]` the config source's layer that layer j
    describes itself by, in the stack with the prefix `stack` (default: the language model's or
    only one), and `structure` what is stored of these layers; `further_layers` the blocks behind them that predict
    further tokens; `vocab_size` the rows of the embedding; `tied` whether the output head is the
    embedding. None leaves the config source's value. The folder that the config source was loaded from is dropped.
    Raises CompatibilityError for a quantised config source and for layer orders that its configuration
    cannot express.
    """
    _refuse_quantised(source_config)
    config = copy.deepcopy(source_config)
    if layer_sources is not None:
        _set_layers(config, layer_sources, stack, structure)
    if further_layers is not None:
        for section in sections(config):
            if section.get(_FURTHER):
                section[_FURTHER] = further_layers
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


def _set_layers(
    config: dict[str, Any],
    sources: Sequence[int],
    stack: str | None,
    structure: LayerStructure | None,
) -> None:
    section = section_of_stack(config, stack)
    key = count_key(section, stack)
    listed = None if key is not None else _listed_layers(section, sources, structure)
    if listed is not None:
        section.update(listed)
        return
    if key is None:
        raise CompatibilityError(
            "The configuration has no number of layers that could be changed "
            f"(looked for {', '.join(LAYER_COUNT_KEYS)}): merge without slices, or choose another "
            "model as `donor`."
        )
    count = section[key]
    if structure is not None:
        _require_own_count(config, key, structure)
    refuse_shared_count(section, count, sources)
    described = section
    if _has_both_sides(config, section):
        described = _described_layers(section, key, stack)
    if structure is not None:
        require_movable(structure, layer_kinds(described, count), sources)
    if len(sources) != count or any(i != source for i, source in enumerate(sources)):
        section.update(move_layers(described, count, sources))
    if key == "num_layers" and _has_both_sides(config, section):
        # A decoder without a number of its own takes the encoder's; only one of the two changes.
        decoder = stack is not None and is_decoder(stack)
        section.setdefault("num_decoder_layers", count)
        section["num_decoder_layers" if decoder else "num_layers"] = len(sources)
        return
    aliases = () if key in DECODER_KEYS else _ALIASES
    for alias in (key, *aliases):
        if section.get(alias) == count:
            section[alias] = len(sources)


def _listed_layers(
    section: dict[str, Any], sources: Sequence[int], structure: LayerStructure | None
) -> dict[str, Any] | None:
    """The section with moved layers where a list of their kinds is all that tells their number; None without one."""
    key = next((key for key in COUNTING_LISTS if isinstance(section.get(key), list)), None)
    if key is None or structure is None or len(section[key]) != len(structure.layers):
        return None
    count = len(section[key])
    require_movable(structure, layer_kinds(section, count), sources)
    return move_layers(section, count, sources)


def _has_both_sides(config: dict[str, Any], section: dict[str, Any]) -> bool:
    """Whether a section describes an encoder and a decoder; a nested one only says that it is a part of both."""
    return section is config and bool(section.get("is_encoder_decoder"))


def _described_layers(section: dict[str, Any], key: str, stack: str | None) -> dict[str, Any]:
    """The keys that may speak of the layers of a stack, where encoder and decoder are described side by side."""
    of_decoder = stack is not None and is_decoder(stack)
    return {k: v for k, v in section.items() if k == key or ("decoder" in k) is of_decoder}


def _require_own_count(config: dict[str, Any], key: str, structure: LayerStructure) -> None:
    """Raise CompatibilityError unless the key counts the layers of that stack, and of no other one."""
    section = section_of_stack(config, structure.stack)
    count = structure.counts[structure.stack]
    if section[key] != count:
        raise CompatibilityError(
            f"The configuration says {key!r} {section[key]}, and {structure.stack!r} has {count} layers, so how it "
            "counts them is not known: merge without slices, or correct the configuration."
        )
    place = _counted_by(config, structure.stack)
    for other, number in structure.counts.items():
        if other != structure.stack and number == count and _counted_by(config, other) == place:
            raise CompatibilityError(
                f"The configuration counts the layers of {structure.stack!r} and of {other!r} with one number "
                f"({key!r}), so the layers of one alone cannot change: merge without slices."
            )


def _counted_by(config: dict[str, Any], stack: str) -> tuple[int, str | None]:
    section = section_of_stack(config, stack)
    side = "decoder" if _has_both_sides(config, section) and is_decoder(stack) else ""
    return id(section), side or count_key(section, stack)


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
