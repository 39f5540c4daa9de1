"""Adapters of the PEFT library: adapter_config.json beside adapter_model.safetensors, or the older pickle.

Keys are `base_model.model.<module>.<part>`. A part is `lora_A.weight` and the like, the name of the adapter may stand
behind `lora_A`; a key without such a part is a whole tensor that was trained (`modules_to_save`, biases).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from weightsmith.adapters import lycoris
from weightsmith.adapters.adapter import Form, Update
from weightsmith.adapters.peft_config import PeftConfig
from weightsmith.adapters.tuner_facts import TUNERS
from weightsmith.adapters.tuners import tuned_updates
from weightsmith.adapters.updates import (
    embedding_update,
    experts_update,
    full_update,
    linear_update,
    ranked,
    replaced,
    together,
    wrong,
)
from weightsmith.errors import CheckpointError, CompatibilityError
from weightsmith.tensors import LazyTensor, shown

# What stands before every key of a PEFT adapter.
PREFIX = "base_model.model."
_PART = re.compile(
    r"^(?P<module>.+?)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector"
    r"|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12]|w[12]_[ab]|t2)"
    r"|(?:token_adapter\.)?trainable_tokens_delta)"
    r"(?:\.(?P<rest>.+))?$"
)
_FOREIGN = re.compile(r"\.(?P<part>ia3_l|oft_|boft_|vera_lambda|lora_E|ranknum|internlm|vblora_)")
# The order in which modules of experts define their parameters, and so in which PEFT wraps them: the first is the
# innermost.
PARAMETER_ORDER = (
    "gate_up_proj",
    "gate_up_proj_bias",
    "gate_proj",
    "up_proj",
    "down_proj",
    "down_proj_bias",
)
_DELTA = "trainable_tokens_delta"


@dataclass(slots=True)
class _Module:
    """What is stored for one module: parts by name; `depth` counts the wrappers around the base's layer."""

    parts: dict[str, LazyTensor] = field(default_factory=dict)
    depth: int = 0


def peft_updates(tensors: Sequence[LazyTensor], config: PeftConfig) -> dict[str, Update]:
    """What each tensor of an adapter's file does, by target.

    Raises CheckpointError, naming the key, for one that is unknown, has no partner or the wrong shape, and for two
    adapters in one file.
    """
    shared, own = _shared_apart(tensors, config)
    modules, whole, names = _grouped(own, _parts_of(config))
    if len(names) > 1:
        raise CheckpointError(
            f"{config.where} stands beside tensors of the adapters {', '.join(map(shown, sorted(names)))}: save them "
            "apart, each in a folder of its own."
        )
    updates: dict[str, Update] = {}
    if config.peft_type in TUNERS:
        parts = {_without_wrappers(path): found.parts for path, found in modules.items()}
        for update in tuned_updates(parts, shared, config):
            _add(updates, update)
        modules = {}
    for path, found in modules.items():
        for update in _updates(path, found, modules, config):
            _add(updates, update)
    for target, tensor in whole.items():
        before = updates.get(target)
        updates[target] = replaced(target, tensor) if before is None else _on_top(before, tensor)
    return updates


def _parts_of(config: PeftConfig) -> re.Pattern[str]:
    """What keys of parts look like."""
    if config.peft_type not in TUNERS:
        return _PART
    parts = "|".join(sorted(TUNERS[config.peft_type].parts))
    return re.compile(rf"^(?P<module>.+?)\.(?P<part>{parts})(?:\.(?P<rest>.+))?$")


def _shared_apart(
    tensors: Sequence[LazyTensor], config: PeftConfig
) -> tuple[dict[str, LazyTensor], list[LazyTensor]]:
    """What a tuner stores once for all modules, and all else."""
    names = TUNERS[config.peft_type].shared if config.peft_type in TUNERS else frozenset()
    shared: dict[str, LazyTensor] = {}
    own = []
    for tensor in tensors:
        first, _, rest = tensor.name.partition(".")
        name = rest.partition(".")[0]
        if first == "base_model" and name in names:
            _keep(shared, name, tensor)
        else:
            own.append(tensor)
    return shared, own


def _without_wrappers(path: str) -> str:
    return ".".join(field for field in path.split(".") if field != "base_layer")


def _grouped(
    tensors: Sequence[LazyTensor], pattern: re.Pattern[str]
) -> tuple[dict[str, _Module], dict[str, LazyTensor], set[str]]:
    modules: dict[str, _Module] = {}
    whole: dict[str, LazyTensor] = {}
    adapters: set[str] = set()
    for tensor in sorted(tensors, key=_wrapping):
        found = pattern.match(tensor.name)
        if found is None:
            target = _target(tensor)
            # With all biases PEFT also saves those of both wrapped layers; the one without a wrapper is what it reads.
            if target not in whole or _wrapping(tensor) == _wrapping(whole[target]):
                _keep(whole, target, tensor)
            continue
        part, adapter = _part(found["part"], found["rest"], tensor)
        if adapter is not None:
            adapters.add(adapter)
        path = found["module"].removeprefix(PREFIX)
        module = modules.setdefault(path, _Module(depth=path.split(".").count("base_layer")))
        _keep(module.parts, part, tensor)
    return modules, whole, adapters


def _wrapping(tensor: LazyTensor) -> int:
    """2 for the untrained copy of a module that was trained whole, 1 for what old dumps call the trained, else 0."""
    fields = tensor.name.split(".")
    return 2 if "original_module" in fields else int("modules_to_save" in fields)


def _keep(kept: dict[str, LazyTensor], key: str, tensor: LazyTensor) -> None:
    if key in kept:
        raise wrong(
            f"{tensor.location} and {kept[key].location} mean the same tensor",
            "save the adapter again",
        )
    kept[key] = tensor


def _part(part: str, rest: str | None, tensor: LazyTensor) -> tuple[str, str | None]:
    """The part of a key, with `.bias` behind it for a bias, and the name of the adapter if the key has it."""
    part = part.removeprefix("token_adapter.")
    fields = [] if rest is None else rest.split(".")
    last = fields.pop() if fields and fields[-1] in ("weight", "bias") else None
    if len(fields) > 1 or (last == "bias" and part != "lora_B"):
        raise _unknown(tensor)
    adapter = fields[0] if fields else None
    return ("lora_B.bias" if last == "bias" else part), adapter


def _target(tensor: LazyTensor) -> str:
    """The base's name for a tensor that is stored whole."""
    name = tensor.name
    foreign = _FOREIGN.search(name)
    if ".oft_r." in f"{name}.":
        raise CompatibilityError(
            f"{tensor.location} is of an OFT as PEFT had it before 0.16, which newer versions do not read: merge it "
            "with PEFT 0.15."
        )
    if foreign is not None or "lora_" in name or not name.startswith(PREFIX):
        raise _unknown(tensor)
    fields = name.removeprefix(PREFIX).split(".")
    # Old dumps have the wrappers' layers and, for whole modules, the adapter's name in their keys.
    kept = [f for f in fields if f not in ("base_layer", "modules_to_save", "original_module")]
    if "modules_to_save" in fields:
        at = fields.index("modules_to_save")
        if len(fields) > at + 2:
            del kept[at]
    return ".".join(kept)


def _unknown(tensor: LazyTensor) -> CheckpointError:
    return CheckpointError(
        f"{tensor.location} has a key that no adapter of a kind that is read has: convert the adapter with the PEFT "
        "library, or remove the tensor if it is a stray one."
    )


def _on_top(update: Update, tensor: LazyTensor) -> Update:
    """A change that was trained on `tensor` in the place of the base's tensor."""
    if update.rows is not None:
        raise wrong(
            f"{tensor.location} is a whole table beside trained rows of it, as is saved for a resized vocabulary",
            "resize the base's vocabulary in the same way, and remove the table from the adapter",
        )
    if update.shape is not None and math.prod(update.shape) != tensor.numel:
        raise wrong(
            f"{tensor.location} of shape {list(tensor.shape)} lies beside factors of a change of shape "
            f"{list(update.shape)}",
            "the adapter is damaged, fetch it again",
        )
    return replace(update, sources=(*update.sources, tensor), replacement=tensor)


def _add(updates: dict[str, Update], update: Update) -> None:
    if update.key in updates:
        raise wrong(
            f"{update.sources[0].location} and {updates[update.key].sources[0].location} both change "
            f"{shown(update.key)}",
            "save the adapter again",
        )
    updates[update.key] = update


def _updates(
    path: str, found: _Module, modules: Mapping[str, _Module], config: PeftConfig
) -> list[Update]:
    module = _without_wrappers(path)
    target = f"{module}.weight"
    parts = dict(found.parts)
    if _DELTA in parts:
        return [_rows_update(target, module, parts, config)]
    if any(name.startswith(("hada_", "lokr_")) for name in parts):
        return [lycoris.product_update(target, parts, config.scale(module), in_peft=True)]
    magnitude = parts.pop("lora_magnitude_vector", None)
    bias = parts.pop("lora_B.bias", None)
    embedding = any(name.startswith("lora_embedding_") for name in parts)
    needed = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    if not parts:
        together(target, {"": magnitude or bias}, needed)  # type: ignore[dict-item]
    odd = sorted(parts.keys() - set(needed))
    if odd:
        raise _unknown(parts[odd[0]])
    down, up = together(target, parts, needed)
    parameter = None if embedding else _parameter(module, found.depth, modules, config)
    if parameter is not None:
        return [_parameter_update(parameter, down, up, config)]
    _check_settings(module, magnitude, bias, config)
    scale = config.scale(module)
    if _is_attentions_output(path, modules):
        scale = replace(scale, factor=2.0 * scale.factor)
    if embedding:
        built = embedding_update(target, down, up, scale)
    else:
        turned = config.fan_in_fan_out and len(down.shape) == 2
        built = linear_update(target, down, up, scale, input_first=turned)
    updates = [built if magnitude is None else _with_magnitude(built, magnitude, embedding)]
    if bias is not None:
        added = full_update(f"{module}.bias", bias, scale.factor)
        updates.append(added)
    return updates


def _check_settings(
    module: str, magnitude: LazyTensor | None, bias: LazyTensor | None, config: PeftConfig
) -> None:
    """Raise CheckpointError where magnitudes and biases are not what the configuration says: PEFT would drop them."""
    if config.flag("use_dora") and magnitude is None:
        raise config.wrong(f"'use_dora' is set, but {shown(module)} has no magnitude in the file")
    odd, key = (magnitude, "use_dora") if magnitude is not None else (bias, "lora_bias")
    if odd is not None and not config.flag(key):
        raise wrong(
            f"{odd.location} only counts with {key!r}, which {config.where} does not set",
            "set it to true if the tensor is to count, or remove the tensor",
        )


def _is_attentions_output(path: str, modules: Mapping[str, _Module]) -> bool:
    """Whether a module is the output projection of a torch MultiheadAttention that PEFT wraps as a whole.

    PEFT adds the change of such a projection twice, in training as in merging (versions to 0.21 at least), so the
    trained model has it twice.
    """
    parent, _, last = path.rpartition(".base_layer.")
    return last == "out_proj" and parent in modules and "lora_A" in modules[parent].parts


def _with_magnitude(update: Update, magnitude: LazyTensor, embedding: bool) -> Update:
    assert update.shape is not None
    by_column = embedding or update.input_first
    length = update.shape[1] if by_column else update.shape[0]
    if magnitude.numel != length:
        raise wrong(
            f"{magnitude.location} has {magnitude.numel} elements, but the factors have {length} outputs",
            "the adapter is damaged, fetch it again",
        )
    sources = (*update.sources, magnitude)
    return replace(update, sources=sources, magnitude=magnitude, by_column=by_column)


def _parameter(
    module: str, depth: int, modules: Mapping[str, _Module], config: PeftConfig
) -> str | None:
    """The parameter that factors at a module belong to, None where they belong to the module's weight.

    PEFT wraps the parameters of a module around one another in the order of their definition and does not write their
    names: the innermost wrapper is that of the first.
    """
    wanted = config.names("target_parameters")
    matching = [name for name in wanted if _is_in(name, module, config)]
    # PEFT adds bare names of fused experts to whatever a mixture's adapter names, so those with a path say more.
    matching = [name for name in matching if "." in name] or matching
    leaves = list(dict.fromkeys(name.rpartition(".")[2] for name in matching))
    if not leaves:
        return None
    wrappers = sorted(
        found.depth
        for path, found in modules.items()
        if "lora_A" in found.parts and path.replace(".base_layer", "") == module
    )
    if len(wrappers) != len(leaves):
        raise config.wrong(
            f"'target_parameters' names {len(leaves)} parameters of {shown(module)}, but the file has factors of "
            f"{len(wrappers)}"
        )
    if len(leaves) > 1:
        unknown = [leaf for leaf in leaves if leaf not in PARAMETER_ORDER]
        if unknown:
            raise CompatibilityError(
                f"{config.where}: which factors of {shown(module)} belong to {shown(unknown[0])} is not written, and "
                "its place among the parameters is unknown: merge the adapter with PEFT first."
            )
        leaves.sort(key=PARAMETER_ORDER.index)
    return f"{module}.{leaves[wrappers[::-1].index(depth)]}"


def _is_in(wanted: str, module: str, config: PeftConfig) -> bool:
    """Whether a target parameter is one of this module; a bare name is one of every module that is no target itself."""
    parent = wanted.rpartition(".")[0]
    if not parent:
        return not config.targets(module)
    return module == parent or module.endswith(f".{parent}")


def _parameter_update(target: str, down: LazyTensor, up: LazyTensor, config: PeftConfig) -> Update:
    scale = config.scale(target)
    experts, rest = divmod(ranked(down, up)[0], scale.rank)
    if rest or not experts:
        raise wrong(
            f"{down.location} has {down.shape[0]} rows, no multiple of the rank {scale.rank}",
            "the file and its configuration do not belong together, fetch both again",
        )
    if experts == 1:
        return linear_update(target, down, up, scale)
    return experts_update(target, down, up, scale, experts)


def _rows_update(
    target: str, module: str, parts: Mapping[str, LazyTensor], config: PeftConfig
) -> Update:
    """Rows of an embedding that were trained, in the places that the configuration names."""
    if len(parts) > 1:
        raise _unknown(next(t for name, t in parts.items() if name != _DELTA))
    delta = parts[_DELTA]
    rows = _token_rows(module, config)
    if not rows or len(delta.shape) != 2 or delta.shape[0] != len(rows):
        raise config.wrong(
            f"{delta.location} of shape {list(delta.shape)} does not have one row for each of the trained tokens"
        )
    return Update(
        target, Form.ROWS, (delta,), shape=(-1, delta.shape[1]), replacement=delta, rows=rows
    )


def _token_rows(module: str, config: PeftConfig) -> tuple[int, ...] | None:
    key = "token_indices" if config.peft_type == "TRAINABLE_TOKENS" else "trainable_token_indices"
    indices: Any = config.content.get(key)
    if isinstance(indices, dict):
        matching = [v for k, v in indices.items() if module == k or module.endswith(f".{k}")]
        indices = matching[0] if len(matching) == 1 else None
    if not isinstance(indices, list) or not all(type(i) is int and i >= 0 for i in indices):
        return None
    return tuple(indices) if len(set(indices)) == len(indices) else None
