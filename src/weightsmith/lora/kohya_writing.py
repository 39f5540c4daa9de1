"""Writing adapters as one file in kohya's dialect, which ComfyUI, A1111 and diffusers read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np

from weightsmith.adapters import ENCODERS, UNET, kohya_prefix, split
from weightsmith.checkpoints import Checkpoint
from weightsmith.deltas import Matrix
from weightsmith.errors import CompatibilityError
from weightsmith.lora.low_rank_adapters import Array, LowRankAdapter
from weightsmith.lora.module_factors import (
    ModuleFactors,
    module_factors,
    most_common,
    plain,
    with_scale,
)
from weightsmith.lora.saved_modules import stored, whole
from weightsmith.lora.storing import Files, StoredFactor
from weightsmith.tensors import DType, narrow, shown


def kohya_files(
    adapter: LowRankAdapter,
    base: Checkpoint | None = None,
    magnitudes: Mapping[str, Matrix] | None = None,
) -> Files:
    """The tensors of a kohya file that changes a base as `adapter` does, with a scalar alpha for each module.

    Modules are named as in the base, with `_` for `.` behind the prefix of their component. Changes of biases and
    norms, and replaced tensors less those of `base`, are kept as LyCORIS has them (`diff`, `diff_b`, `w_norm`,
    `b_norm`), magnitudes as `dora_scale`. All modules of a U-Net get the alpha that most have, the difference going
    into the factors (in float32 where their own dtype would lose it). Raises CompatibilityError for what the dialect
    cannot hold.
    """
    _refuse_experts(adapter)
    modules = module_factors(adapter, magnitudes)
    names = _flattened([*modules, *_parents(adapter)])
    alpha = most_common(m.alpha for m in modules.values()) if modules else 1.0
    is_unet = any(split(name)[0] == UNET for name in modules)
    tensors = []
    for name, given in modules.items():
        # diffusers loses alphas of a U-Net's attention where not all in a file are the same.
        must_change = is_unet and given.alpha != alpha
        scale = alpha / given.rank if must_change else given.scale
        found, dtype = with_scale(given, scale, adapter.dtype)
        tensors += _tensors(names[name], found, dtype)
    changes = _changes(adapter, base)
    taken = set(modules)
    for target, change in sorted(changes.items()):
        name = _whole_name(names, target, change, taken, changes)
        tensors.append(stored(name, change, (adapter.dtype,)))
    is_lycoris = bool(changes) or any(m.magnitude is not None for m in modules.values())
    return Files("", tensors, _metadata(adapter, modules, is_lycoris=is_lycoris))


def refuse_unnamed(adapter: LowRankAdapter, dialect: str) -> None:
    """Raise CompatibilityError for changes of fused experts, embeddings and Conv1D, which image models do not have."""
    for factors in adapter.factors.values():
        if factors.part is not None:
            what = "is one of fused experts, which"
        elif factors.kind == "embedding":
            what = "is an embedding, which"
        elif factors.input_first:
            what = "is stored inputs first (Conv1D), which"
        else:
            continue
        raise CompatibilityError(
            f"{shown(factors.target)} {what} the {dialect} format has no factors for; write PEFT instead."
        )


def _refuse_experts(adapter: LowRankAdapter) -> None:
    refuse_unnamed(adapter, "kohya")
    if not (adapter.factors or adapter.added or adapter.replaced):
        raise CompatibilityError("The adapter changes nothing, so there is nothing to write.")


def _parents(adapter: LowRankAdapter) -> list[str]:
    return [target.rpartition(".")[0] for target in (*adapter.added, *adapter.replaced)]


def _flattened(modules: Sequence[str]) -> dict[str, str]:
    """kohya's name of each module; raises CompatibilityError for two that would have the same."""
    parts = {module: split(module) for module in sorted(set(modules))}
    has_second = any(component in ENCODERS[1:] for component, _ in parts.values())
    names: dict[str, str] = {}
    owners: dict[str, str] = {}
    for module, (component, path) in parts.items():
        flat = f"{kohya_prefix(component, has_second=has_second)}_{path.replace('.', '_')}"
        if flat in owners:
            raise CompatibilityError(
                f"{shown(owners[flat])} and {shown(module)} would both be called {shown(flat)} in a kohya file; "
                "write PEFT instead."
            )
        names[module] = flat
        owners[flat] = module
    return names


def _tensors(name: str, found: ModuleFactors, dtype: DType) -> list[StoredFactor]:
    tensors = [
        StoredFactor(f"{name}.lora_down.weight", found.down, dtype),
        StoredFactor(f"{name}.lora_up.weight", found.wide_up(), dtype),
        StoredFactor(f"{name}.alpha", np.array(found.alpha), DType.FLOAT32),
    ]
    if found.magnitude is not None:
        ones = tuple(1 for _ in found.kernel)
        shape = (1, -1, *ones) if found.is_by_input else (-1, 1, *ones)
        tensors.append(stored(f"{name}.dora_scale", found.magnitude.reshape(shape), (dtype,)))
    return tensors


def _changes(adapter: LowRankAdapter, base: Checkpoint | None) -> dict[str, Array]:
    """What is added whole; a replaced tensor is the base's and a change."""
    changes = dict(adapter.added)
    for target, values in adapter.replaced.items():
        if base is None:
            raise CompatibilityError(
                f"{shown(target)} is replaced whole, which kohya's format keeps as a change; give the base (--base)."
            )
        changes[target] = narrow(values - whole(target, values.shape, base), DType.FLOAT32)
    return changes


def _whole_name(
    names: Mapping[str, str],
    target: str,
    change: Array,
    taken: set[str],
    changes: Mapping[str, Array],
) -> str:
    module, _, leaf = target.rpartition(".")
    if leaf not in ("weight", "bias") or (leaf == "weight" and module in taken):
        raise CompatibilityError(
            f"The change of {shown(target)} has no name in a kohya file; leave it out or write PEFT."
        )
    is_norm = leaf == "weight" and change.ndim == 1
    weight = changes.get(f"{module}.weight")
    if leaf == "bias":
        is_norm = module not in taken and weight is not None and weight.ndim == 1
        part = "b_norm" if is_norm else "diff_b"
    else:
        part = "w_norm" if is_norm else "diff"
    return f"{names[module]}.{part}"


def _metadata(
    adapter: LowRankAdapter, modules: Mapping[str, ModuleFactors], *, is_lycoris: bool
) -> dict[str, str]:
    found = {
        "format": "pt",
        "ss_network_module": "lycoris.kohya" if is_lycoris else "networks.lora",
    }
    if adapter.base_reference:
        found["ss_sd_model_name"] = adapter.base_reference
    arguments: dict[str, str] = {"algo": "lora"} if is_lycoris else {}
    flat = [m for m in modules.values() if not m.kernel]
    convolutions = [m for m in modules.values() if m.kernel]
    for group, into, name in (
        (flat or convolutions, found, "ss_network_"),
        (convolutions, arguments, "conv_"),
    ):
        if group:
            into[f"{name}dim"] = str(plain(most_common(m.rank for m in group)))
            into[f"{name}alpha"] = str(plain(most_common(m.alpha for m in group)))
    if arguments:
        found["ss_network_args"] = json.dumps(arguments, sort_keys=True)
    return found
