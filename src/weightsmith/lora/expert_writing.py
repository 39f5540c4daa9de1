"""Factors of fused experts in the layout of PEFT's `target_parameters`.

For E experts of rank r, A is (r E) x inputs with the experts outermost in its rows, and B outputs x (r E) with the
experts innermost in its columns.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from weightsmith.adapters import PARAMETER_ORDER
from weightsmith.deltas import Matrix
from weightsmith.errors import CompatibilityError
from weightsmith.lora.low_rank_adapters import Factors, LowRankAdapter
from weightsmith.lora.storing import StoredFactor
from weightsmith.tensors import DType, shown

# Those that transformers 5.23 converts as it converts qwen2_moe, which is what PEFT 0.21 goes by.
_FAMILIES = frozenset(
    """qwen2_moe afmoe deepseek_v2 deepseek_v3 deepseek_v32 dots1 ernie4_5_moe glm4_moe glm4_moe_lite
    glm_moe_dsa glm4v_moe longcat_flash solar_open mellum qwen3_moe beam qwen3_omni_moe
    qwen3_omni_moe_thinker qwen3_omni_moe_text qwen3_next hunyuan_v1_moe flex_olmo olmoe exaone_moe
    cohere2_moe""".split()
)
# Their networks store inputs first and do not say so, so PEFT takes inputs for outputs.
_TAKEN_AS_OUTPUTS_FIRST = frozenset({"llama4", "llama4_text"})
_PROJECTIONS = (".gate_proj.weight", ".up_proj.weight", ".down_proj.weight")


@dataclass(slots=True, eq=False)
class ExpertTensors:
    """The tensors of fused experts; `targets` are the parameters, `ranks` rank and alpha of each."""

    tensors: list[StoredFactor] = field(default_factory=list)
    targets: list[str] = field(default_factory=list)
    ranks: dict[str, tuple[int, float]] = field(default_factory=dict)


def expert_tensors(
    adapter: LowRankAdapter, prefix: str, model_type: object = None
) -> ExpertTensors:
    """The factors of all fused tensors as PEFT stores them for that `model_type`, zeros for experts without factors.

    Raises CompatibilityError for a module with several fused tensors whose order PEFT would not know.
    """
    by_target: dict[str, dict[int, Factors]] = collections.defaultdict(dict)
    for factors in adapter.factors.values():
        if factors.part is not None:
            by_target[factors.target][factors.part] = factors
    modules: dict[str, list[str]] = collections.defaultdict(list)
    for target in sorted(by_target):
        module, _, name = target.rpartition(".")
        modules[module].append(name)
    turns = model_type not in _TAKEN_AS_OUTPUTS_FIRST
    found = ExpertTensors()
    for module, names in sorted(modules.items()):
        for depth, name in enumerate(_nested(module, names)):
            target = f"{module}.{name}"
            _add(
                found,
                target,
                by_target[target],
                f"{prefix}{module}{'.base_layer' * depth}",
                adapter.dtype,
                turns=turns,
            )
    return found


def left_out_by_peft(model_type: object, targets: Iterable[str]) -> list[str]:
    """Which tensors, factored as matrices of their own, PEFT would leave as they are in a model of that type.

    It takes every module called `gate_proj`, `up_proj` or `down_proj` of these families for the experts' fused
    parameters, by whatever path it is targeted, and so leaves out dense layers and shared experts without a word.
    """
    if model_type not in _FAMILIES:
        return []
    return [target for target in targets if target.endswith(_PROJECTIONS)]


def _nested(module: str, names: Sequence[str]) -> list[str]:
    """The outermost wrapper first."""
    if not module:
        raise CompatibilityError(
            f"PEFT cannot adapt the parameter {shown(names[0])} of the model itself; leave it out."
        )
    if len(names) == 1:
        return list(names)
    if not set(names) <= set(PARAMETER_ORDER):
        raise CompatibilityError(
            f"{shown(module)} has several fused tensors ({', '.join(names)}), whose order in a PEFT file depends on "
            "the model's code; write them as adapters of their own."
        )
    return sorted(names, key=PARAMETER_ORDER.index, reverse=True)


def _add(
    found: ExpertTensors,
    target: str,
    parts: dict[int, Factors],
    path: str,
    dtype: DType,
    *,
    turns: bool,
) -> None:
    count = next(iter(parts.values())).shape[0]
    rank = max(part.change.rank for part in parts.values())
    scales = {part.change.scale for part in parts.values()}
    scale = next(iter(scales)) if len(scales) == 1 and min(scales) > 0.0 else 1.0
    first = _oriented(next(iter(parts.values())), turns)
    down = np.zeros((count, rank, first[0].shape[1]))
    up = np.zeros((first[1].shape[0], rank, count))
    for number, part in parts.items():
        a, b = _oriented(part, turns)
        down[number, : len(a)] = a
        up[:, : len(a), number] = b * (part.change.scale / scale)
    found.tensors += [
        StoredFactor(f"{path}.lora_A.weight", down.reshape(count * rank, -1), dtype),
        StoredFactor(f"{path}.lora_B.weight", up.reshape(-1, rank * count), dtype),
    ]
    found.targets.append(target)
    found.ranks[target] = (rank, scale * rank)


def _oriented(part: Factors, turns: bool) -> tuple[Matrix, Matrix]:
    change = part.change
    if turns and part.input_first:
        return change.left.T, change.right.T
    return change.right, change.left
