"""Writing adapters as diffusers saves them: one file with the component before each of PEFT's names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from weightsmith.adapters import COMPONENTS, METADATA, split
from weightsmith.checkpoints import Checkpoint
from weightsmith.deltas import Matrix
from weightsmith.errors import CompatibilityError, UsageError
from weightsmith.lora.kohya_writing import refuse_unnamed
from weightsmith.lora.low_rank_adapters import LowRankAdapter
from weightsmith.lora.module_factors import ModuleFactors, module_factors, with_scale
from weightsmith.lora.peft_writing import bias_tensors, factor_tensors, peft_config
from weightsmith.lora.saved_modules import decide_saved_modules
from weightsmith.lora.storing import Files
from weightsmith.tensors import shown

WEIGHTS = "pytorch_lora_weights.safetensors"


def diffusers_files(
    adapter: LowRankAdapter,
    base: Checkpoint | None = None,
    magnitudes: Mapping[str, Matrix] | None = None,
    *,
    component: str | None = None,
) -> Files:
    """The file of a diffusers adapter; `component` is where modules lie whose names do not tell it.

    The scale of every module is 1, as readers take it that know of no alpha: it is put into the factors, in float32
    where their own dtype would not hold the product. Raises CompatibilityError for what the dialect cannot hold or
    where the component is unknown, and UsageError for a component that does not exist.
    """
    if component is not None and component not in COMPONENTS:
        raise UsageError(f"{component!r} is no component; take one of {', '.join(COMPONENTS)}.")
    refuse_unnamed(adapter, "diffusers")
    modules = module_factors(adapter, magnitudes)
    if not modules:
        raise CompatibilityError("The adapter has no factors, so there is nothing to write.")
    saved_modules = decide_saved_modules(adapter, base, modules, takes_lora_bias=not magnitudes)
    if saved_modules.biases or saved_modules.saved:
        name = min([*saved_modules.biases, *saved_modules.saved])
        raise CompatibilityError(
            f"{shown(name)} changes as a whole, which a diffusers file cannot say; write PEFT instead."
        )
    tensors = []
    groups: dict[str, dict[str, ModuleFactors]] = {}
    for name, given in modules.items():
        part, path = _placed(name, component)
        found, dtype = with_scale(given, 1.0, adapter.dtype)
        groups.setdefault(part, {})[path] = found
        tensors += factor_tensors(found, f"{part}.{path}", dtype)
    named = {f"{part}.{path}": m for part, group in groups.items() for path, m in group.items()}
    shifted = {name: ".".join(_placed(name, component)) for name in modules}
    biases = {shifted[name]: value for name, value in saved_modules.lora_biases.items()}
    tensors += bias_tensors(named, replace(saved_modules, lora_biases=biases), "", adapter.dtype)
    config: dict[str, Any] = {}
    for part, group in sorted(groups.items()):
        own = peft_config(group, list(group))
        own["use_dora"] = any(m.magnitude is not None for m in group.values())
        own["lora_bias"] = bool(biases)
        config |= {f"{part}.{key}": value for key, value in own.items()}
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
    return Files(WEIGHTS, tensors, {"format": "pt", METADATA: text})


def _placed(module: str, component: str | None) -> tuple[str, str]:
    found, path = split(module)
    part = found or component
    if part is None:
        raise CompatibilityError(
            f"Which component of a pipeline {shown(module)} is in cannot be told from its name; say it (component), "
            "or write PEFT."
        )
    return part, path
