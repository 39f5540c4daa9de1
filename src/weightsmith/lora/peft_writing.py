"""Writing adapters as the PEFT library reads them: adapter_config.json, adapter_model.safetensors and a card."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from weightsmith.adapters import PREFIX
from weightsmith.checkpoints import Checkpoint
from weightsmith.deltas import Matrix
from weightsmith.errors import CompatibilityError
from weightsmith.lora.expert_writing import expert_tensors
from weightsmith.lora.low_rank_adapters import Factors, LowRankAdapter
from weightsmith.lora.module_factors import ModuleFactors, module_factors, most_common, plain
from weightsmith.lora.names_in_memory import in_memory, renamed_adapter, renamed_base
from weightsmith.lora.parameters_in_memory import with_parameters
from weightsmith.lora.saved_modules import SavedModules, decide_saved_modules, stored, tied_head
from weightsmith.lora.storing import Files, StoredFactor
from weightsmith.tensors import DType, shown

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def peft_files(
    adapter: LowRankAdapter,
    base: Checkpoint | None = None,
    magnitudes: Mapping[str, Matrix] | None = None,
    *,
    task: str | None = None,
) -> Files:
    """The files of a PEFT adapter that changes a base as `adapter` does.

    Modules are named by their whole paths, so that none is adapted besides; where ranks or scales differ the patterns
    name single modules as PEFT's regular expressions want it. `base` is needed where a norm or a bias changes, and
    tells whether the head is tied to the embedding; then both get the factors, as PEFT keeps them apart.
    `magnitudes` (DoRA) are by target; `task` is PEFT's task type, where it does not follow from the base. Raises
    CompatibilityError for what PEFT cannot hold.
    """
    rename = in_memory(base)
    adapter = renamed_adapter(adapter, rename)
    base = None if base is None else renamed_base(base, rename)
    adapter = with_parameters(adapter, base)
    magnitudes = {rename(name): values for name, values in (magnitudes or {}).items()}
    adapter = _with_tied(adapter, base)
    modules = module_factors(adapter, magnitudes)
    model_type = None if base is None else (base.config or {}).get("model_type")
    experts = expert_tensors(adapter, PREFIX, model_type)
    _check(modules, experts.targets)
    embeds = any(m.factors.kind == "embedding" for m in modules.values())
    takes_bias = not (embeds or magnitudes or experts.targets)
    saved_modules = decide_saved_modules(adapter, base, modules, takes_lora_bias=takes_bias)
    tensors = [
        t for m in modules.values() for t in factor_tensors(m, PREFIX + m.module, adapter.dtype)
    ]
    tensors += experts.tensors
    tensors += bias_tensors(modules, saved_modules, PREFIX, adapter.dtype)
    for name, values in {**saved_modules.biases, **saved_modules.saved}.items():
        source = None if base is None else base.tensors.get(name.replace(".base_layer.", "."))
        kept = (adapter.dtype,) if source is None else (adapter.dtype, source.dtype)
        tensors.append(stored(PREFIX + name, values, kept))
    config = _config(adapter, base, modules, saved_modules, experts.targets, experts.ranks)
    if magnitudes:
        config["use_dora"] = True
    config["task_type"] = task or _task(base)
    companions = {
        CONFIG: _json(config),
        "README.md": _card(config, base, len(modules) + len(experts.targets)).encode(),
    }
    return Files(WEIGHTS, tensors, companions=companions)


def peft_config(
    modules: Mapping[str, ModuleFactors],
    known: Sequence[str] = (),
    more: Mapping[str, tuple[int, float]] | None = None,
) -> dict[str, Any]:
    """What of a configuration follows from the factors; `known` are names of modules that must not be adapted.

    `more` has rank and alpha of parameters that are no module's weight.
    """
    settings = {name: (m.rank, m.alpha) for name, m in modules.items()} | dict(more or {})
    rank = most_common(r for r, _ in settings.values())
    alpha = most_common(a for _, a in settings.values())
    return {
        "r": rank,
        "lora_alpha": plain(alpha),
        "rank_pattern": {_exactly(n): r for n, (r, _) in sorted(settings.items()) if r != rank},
        "alpha_pattern": {
            _exactly(n): plain(a) for n, (_, a) in sorted(settings.items()) if a != alpha
        },
        "target_modules": _targets(sorted(modules), known),
    }


def _exactly(module: str) -> str:
    """A regular expression that matches this module's path only: PEFT lets any prefix stand before a pattern."""
    return "^" + re.escape(module)


def _targets(modules: Sequence[str], known: Sequence[str]) -> list[str] | str:
    """The paths; one regular expression where one is also the end of another module's path, as PEFT matches ends."""
    wanted = set(modules)
    ends = {
        name[i + 1 :]
        for name in known
        if name not in wanted
        for i, letter in enumerate(name)
        if letter == "."
    }
    if wanted.isdisjoint(ends):
        return list(modules)
    return "(?:" + "|".join(re.escape(module) for module in modules) + ")"


def _with_tied(adapter: LowRankAdapter, base: Checkpoint | None) -> LowRankAdapter:
    names = tied_head(base)
    if names is None:
        return adapter
    factors = dict(adapter.factors)
    embedding, head = (factors.get(name) for name in names)
    if embedding is not None and head is None:
        factors[names[1]] = Factors(names[1], embedding.change, embedding.shape)
    elif head is not None and embedding is None:
        factors[names[0]] = Factors(names[0], head.change, head.shape, "embedding")
    return LowRankAdapter(
        factors, adapter.replaced, adapter.added, adapter.base_reference, adapter.dtype
    )


def _check(modules: Mapping[str, ModuleFactors], experts: Sequence[str]) -> None:
    if not modules and not experts:
        raise CompatibilityError(
            "The adapter has no factors, and PEFT loads none without; merge what it replaces into a checkpoint instead."
        )
    with_magnitude = [name for name, m in modules.items() if m.magnitude is not None]
    without = [name for name, m in modules.items() if m.magnitude is None]
    if with_magnitude and (without or experts):
        plain_one = (without or list(experts))[0]
        raise CompatibilityError(
            f"{shown(with_magnitude[0])} has a magnitude (DoRA) and {shown(plain_one)} has none, but PEFT knows only "
            "adapters in which all have one or none has; merge it into its base instead."
        )


def factor_tensors(found: ModuleFactors, path: str, dtype: DType) -> list[StoredFactor]:
    """The tensors of one module, under the names that PEFT has for them behind `path`."""
    if found.factors.kind == "embedding":
        tensors = [
            StoredFactor(f"{path}.lora_embedding_A", found.down, dtype),
            StoredFactor(f"{path}.lora_embedding_B", found.up, dtype),
        ]
    else:
        tensors = [
            StoredFactor(f"{path}.lora_A.weight", found.down, dtype),
            StoredFactor(f"{path}.lora_B.weight", found.wide_up(), dtype),
        ]
    if found.magnitude is not None:
        shape = _magnitude_shape(found)
        magnitude = stored(
            f"{path}.lora_magnitude_vector", found.magnitude.reshape(shape), (dtype,)
        )
        tensors.append(magnitude)
    return tensors


def _magnitude_shape(found: ModuleFactors) -> tuple[int, ...]:
    outputs, given = found.up.shape[0], found.magnitude
    assert given is not None
    if found.is_by_input or given.size != outputs:
        raise CompatibilityError(
            f"The magnitude of {shown(found.module)} has {given.size} numbers, one for each input, but PEFT has one "
            f"for each of the {outputs} outputs; merge the adapter into its base instead."
        )
    return (1, outputs, *(1 for _ in found.kernel)) if found.kernel else (outputs,)


def bias_tensors(
    modules: Mapping[str, ModuleFactors], saved_modules: SavedModules, prefix: str, dtype: DType
) -> list[StoredFactor]:
    """The biases of `lora_bias`: PEFT gives every module one if it gives one to any."""
    if not saved_modules.lora_biases:
        return []
    tensors = []
    for name, found in modules.items():
        change = saved_modules.lora_biases.get(name)
        values = found.up[:, 0] * 0.0 if change is None else change / found.scale
        tensors.append(StoredFactor(f"{prefix}{name}.lora_B.bias", values, dtype))
    return tensors


def _config(
    adapter: LowRankAdapter,
    base: Checkpoint | None,
    modules: Mapping[str, ModuleFactors],
    saved_modules: SavedModules,
    parameters: Sequence[str],
    ranks: Mapping[str, tuple[int, float]],
) -> dict[str, Any]:
    known = [] if base is None else [name.rpartition(".")[0] for name in base.tensors]
    config: dict[str, Any] = {
        "base_model_name_or_path": adapter.base_reference or _reference(base),
        "bias": "none",
        "fan_in_fan_out": any(m.factors.input_first for m in modules.values()),
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_dropout": 0.0,
        "modules_to_save": sorted(saved_modules.modules) or None,
        "peft_type": "LORA",
        "use_rslora": False,
        **peft_config(modules, [*known, *modules], ranks),
    }
    if saved_modules.biases:
        is_lora = all(".base_layer." in name for name in saved_modules.biases)
        config["bias"] = "lora_only" if is_lora else "all"
    # Fields that older versions of PEFT do not know are written where they say something.
    if saved_modules.lora_biases:
        config["lora_bias"] = True
    if parameters:
        config["target_parameters"] = sorted(parameters)
    names = tied_head(base)
    if names is not None and any(
        n.rpartition(".")[0] in (*modules, *saved_modules.modules) for n in names
    ):
        config["ensure_weight_tying"] = True
    return config


def _reference(base: Checkpoint | None) -> str | None:
    return None if base is None else base.hub_id or base.source


def _task(base: Checkpoint | None) -> str | None:
    declared = (base.config or {}).get("architectures") if base is not None else None
    names = declared if isinstance(declared, list) else []
    is_language = any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in names)
    return "CAUSAL_LM" if is_language else None


def _json(config: Mapping[str, Any]) -> bytes:
    return (json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()


def _card(config: Mapping[str, Any], base: Checkpoint | None, count: int) -> str:
    from weightsmith.version import __version__

    front = ["library_name: peft", "tags:", "- lora", "- weightsmith"]
    if base is not None and base.hub_id is not None:
        front = [f"base_model: {json.dumps(base.hub_id)}", *front]
    ranks = sorted({config["r"], *config["rank_pattern"].values()})
    shown_ranks = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    what = "tensor" if count == 1 else "tensors"
    return "\n".join(
        [
            "---",
            *front,
            "---",
            "",
            "# LoRA adapter",
            "",
            f"Factors for {count} {what} of rank {shown_ranks}, written by weightsmith {__version__}.",
            "",
        ]
    )
