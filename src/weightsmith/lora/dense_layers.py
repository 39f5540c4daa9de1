"""Factors that PEFT leaves out without a word: those of dense layers and shared experts of mixtures.

PEFT takes every module called `gate_proj`, `up_proj` or `down_proj` of these families for the experts' fused
parameters, by whatever path it is targeted.
"""

from __future__ import annotations

from collections.abc import Iterable

# Those that transformers 5.23 converts as it converts qwen2_moe, which is what PEFT 0.21 goes by.
_FAMILIES = frozenset(
    """qwen2_moe afmoe deepseek_v2 deepseek_v3 deepseek_v32 dots1 ernie4_5_moe glm4_moe glm4_moe_lite
    glm_moe_dsa glm4v_moe longcat_flash solar_open mellum qwen3_moe beam qwen3_omni_moe
    qwen3_omni_moe_thinker qwen3_omni_moe_text qwen3_next hunyuan_v1_moe flex_olmo olmoe exaone_moe
    cohere2_moe""".split()
)
_PROJECTIONS = (".gate_proj.weight", ".up_proj.weight", ".down_proj.weight")


def left_out_by_peft(model_type: object, targets: Iterable[str]) -> list[str]:
    """Which tensors, factored as matrices of their own, PEFT would leave as they are in a model of that type."""
    if model_type not in _FAMILIES:
        return []
    return [target for target in targets if target.endswith(_PROJECTIONS)]
