"""Opening an adapter, in whatever dialect it was written, from its headers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weightsmith.adapters.adapter import Adapter
from weightsmith.adapters.diffusers_files import METADATA, diffusers_updates
from weightsmith.adapters.kohya_files import is_flat, kohya_updates
from weightsmith.adapters.peft_config import changed_the_base, checked_config
from weightsmith.adapters.peft_files import peft_updates
from weightsmith.adapters.tuner_facts import TUNERS
from weightsmith.checkpoints import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    ListedWeights,
    find_location,
    is_inside,
    read_json,
    read_weights,
)
from weightsmith.errors import CheckpointError, CompatibilityError
from weightsmith.tensors import expanded, shown, way_out

DIFFUSERS_NAMES = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")

# What names of tensors have in adapters and in no model.
_MARKS = (
    ".lora_",
    "_lora.",
    ".lora.",
    ".lora_linear_layer.",
    ".hada_",
    ".lokr_",
    ".trainable_tokens_delta",
    *(f".{part}" for facts in TUNERS.values() for part in sorted(facts.parts)),
)
_FLAT_MARKS = (".diff", ".diff_b", ".w_norm", ".b_norm")


def is_adapter(path: str | Path) -> bool:
    """Whether a local folder or file is an adapter, as far as file names and one header tell.

    A folder is one if it has adapter_config.json or diffusers' LoRA file; a safetensors file if names in its header
    have the marks of one. Nothing that is not there, damaged or on a Hub is one.
    """
    place = expanded(path)
    if place.is_dir():
        return any((place / name).is_file() for name in (ADAPTER_CONFIG, *DIFFUSERS_NAMES))
    return _marked_weights(place) is not None


def _marked_weights(file: Path) -> ListedWeights | None:
    """What a safetensors file lists, or None unless some of it is called like tensors of an adapter."""
    if file.suffix != ".safetensors" or not file.is_file():
        return None
    try:
        listed = read_weights(file)
    except CheckpointError:
        return None
    return listed if any(_is_marked(tensor.name) for tensor in listed.tensors) else None


def _is_marked(name: str) -> bool:
    return any(mark in name for mark in _MARKS) or (
        name.startswith(("lora_", "lycoris_")) and name.endswith(_FLAT_MARKS)
    )


def open_adapter(path: str | Path, *, initial: str | Path | None = None) -> Adapter:
    """Open an adapter: a folder or a Hub id of PEFT's or diffusers' layout, or one file of any dialect.

    `initial` is the adapter as it was before training, for one whose initialisation changed the base (PiSSA, OLoRA,
    CorDA, LoRA-GA): the change is then against the base as it was (see `initial.against_base`), and without it
    CompatibilityError is raised. Nothing but headers and configurations is read. Raises CheckpointError for files that
    are missing, damaged or hostile, keys that are unknown and factors without partner or of wrong shapes,
    CompatibilityError for adapters that are no changes of weights.
    """
    adapter = _opened(path)
    changed = changed_the_base(adapter.config)
    if initial is not None:
        from weightsmith.adapters.initial import against_base

        return against_base(adapter, _opened(initial))
    if changed is not None:
        raise CompatibilityError(
            f"{shown(path)} was initialised with {shown(changed)}, which took something out of the base when training "
            "began: give the adapter as it was before training too (initial), or the one that PEFT converted "
            "(path_initial_model_for_weight_conversion)."
        )
    return adapter


def _opened(path: str | Path) -> Adapter:
    location = find_location(path)
    place, source = location.path, str(path)
    if not place.is_dir():
        if place.name in ADAPTER_WEIGHTS and (place.parent / ADAPTER_CONFIG).is_file():
            return _peft(place.parent, source)
        return _file(place, _listed(place), source)
    if (place / ADAPTER_CONFIG).exists() or (place / ADAPTER_CONFIG).is_symlink():
        return _peft(place, source)
    for name in DIFFUSERS_NAMES:
        if (place / name).is_file():
            file = _inside(place, name)
            return _file(file, _listed(file), source, place)
    files = sorted(place.glob("*.safetensors"))
    marked = _marked_weights(files[0]) if len(files) == 1 else None
    if marked is not None:
        return _file(_inside(place, files[0].name), marked, source, place)
    raise CheckpointError(_nothing_found(place))


def _nothing_found(folder: Path) -> str:
    below = sorted(p.parent.name for p in folder.glob(f"*/{ADAPTER_CONFIG}"))
    advice = (
        f"give one of the folders in it ({', '.join(map(shown, below[:5]))})"
        if below
        else f"give a folder with {ADAPTER_CONFIG} or {DIFFUSERS_NAMES[0]}, or a file"
    )
    return f"{shown(folder)} holds no adapter: {advice}."


def _inside(folder: Path, name: str) -> Path:
    if not is_inside(folder / name, folder):
        raise CheckpointError(f"{shown(folder / name)} {way_out(folder / name)}.")
    return folder / name


def _peft(folder: Path, source: str) -> Adapter:
    content = read_json(_inside(folder, ADAPTER_CONFIG))
    config = checked_config(content, shown(folder / ADAPTER_CONFIG))
    name = next((name for name in ADAPTER_WEIGHTS if (folder / name).exists()), None)
    if name is None:
        raise CheckpointError(
            f"{shown(folder)} has {ADAPTER_CONFIG}, but neither {' nor '.join(ADAPTER_WEIGHTS)}: fetch the adapter "
            "again."
        )
    tensors = _listed(_inside(folder, name)).tensors
    base = content.get("base_model_name_or_path")
    return Adapter(
        folder,
        source,
        "peft",
        peft_updates(tensors, config),
        content,
        base if isinstance(base, str) and base else None,
    )


def _listed(file: Path) -> ListedWeights:
    listed = read_weights(file)
    if not listed.tensors:
        raise CheckpointError(f"{shown(file)} holds no tensors: fetch the adapter again.")
    return listed


def _file(file: Path, listed: ListedWeights, source: str, place: Path | None = None) -> Adapter:
    """An adapter in one file, whose dialect its keys tell."""
    tensors, metadata = listed.tensors, listed.metadata
    where = place or file
    if is_flat(tensors):
        updates, dialect = kohya_updates(tensors)
        base = metadata.get("ss_sd_model_name") or metadata.get("ss_base_model_version")
        return Adapter(where, source, dialect, updates, dict(metadata), base, flattened=True)
    config = _carried_config(metadata, file)
    if all(tensor.name.startswith("base_model.") for tensor in tensors):
        if config is None:
            raise CheckpointError(
                f"{shown(file)} has PEFT's keys but no configuration, so the scale of its factors is unknown: give the "
                f"folder with {ADAPTER_CONFIG}."
            )
        checked = checked_config({"peft_type": "LORA", **config}, shown(file))
        return Adapter(where, source, "peft", peft_updates(tensors, checked), checked.content)
    if not any(_is_marked(t.name) or t.name.endswith(_FLAT_MARKS) for t in tensors):
        raise CheckpointError(
            f"{shown(file)} holds no adapter, as no tensor is called like one of an adapter (the first is "
            f"{shown(tensors[0].name)}): give the adapter's own file."
        )
    return Adapter(
        where, source, "diffusers", diffusers_updates(tensors, config, shown(file)), config or {}
    )


def _carried_config(metadata: Mapping[str, str], file: Path) -> dict[str, Any] | None:
    """The configuration that diffusers writes into the header of a file."""
    text = metadata.get(METADATA)
    if text is None:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise CheckpointError(
            f"{shown(file)}: its metadata {METADATA!r} is no JSON object: fetch the adapter again."
        )
    return found
