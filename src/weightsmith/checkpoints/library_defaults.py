"""What transformers takes for a key that a configuration leaves out: a small table of facts.

Configurations are saved with other keys by every version of a library, so a key that is absent says what its default
says. Families and keys that are not here have no known default. `tests/checkpoints/test_library_defaults.py` compares
every line with transformers where that is installed; nothing here imports it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The same in every family that has the key and is not listed below with another value.
_EVERYWHERE: Mapping[str, Any] = {
    "mlp_bias": False,
    "use_sliding_window": False,
    "scale_embedding": False,
    "qkv_bias": True,
    "norm_topk_prob": True,
    "partial_rotary_factor": 1.0,
}

_LLAMA = {
    "num_attention_heads": 32,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "rope_theta": 10_000.0,
}
_GEMMA_2 = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "query_pre_attn_scalar": 256,
    "rope_theta": 10_000.0,
}
_BERT = {"num_attention_heads": 12, "hidden_act": "gelu", "layer_norm_eps": 1e-12}
_VIT = {**_BERT, "patch_size": 16, "image_size": 224}
_CLIP = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}

_OF_FAMILY: Mapping[str, Mapping[str, Any]] = {
    "llama": {**_LLAMA, "num_key_value_heads": None},
    "mistral": {
        **{k: v for k, v in _LLAMA.items() if k != "attention_bias"},
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    "mixtral": {
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "num_experts_per_tok": 2,
        "rope_theta": 1_000_000.0,
    },
    "qwen2": {
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
    },
    "qwen3": {**_LLAMA, "num_key_value_heads": 32, "head_dim": 128},
    "qwen3_moe": {
        **_LLAMA,
        "num_key_value_heads": 4,
        "num_experts_per_tok": 8,
        "norm_topk_prob": False,
    },
    "gemma": {
        **_LLAMA,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
    },
    "gemma2": _GEMMA_2,
    "gemma3_text": {
        **{k: v for k, v in _GEMMA_2.items() if k != "rope_theta"},
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    },
    "phi": {
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "hidden_act": "gelu_new",
        "layer_norm_eps": 1e-5,
        "partial_rotary_factor": 0.5,
        "rope_theta": 10_000.0,
    },
    "phi3": {
        "num_attention_heads": 32,
        "num_key_value_heads": None,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
        "rope_theta": 10_000.0,
    },
    "gpt_neox": {
        "num_attention_heads": 64,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "attention_bias": True,
        "partial_rotary_factor": 0.25,
        "rope_theta": 10_000.0,
    },
    "stablelm": {
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "hidden_act": "silu",
        "layer_norm_eps": 1e-5,
        "partial_rotary_factor": 0.25,
        "rope_theta": 10_000.0,
    },
    "granite": {**_LLAMA, "num_key_value_heads": None},
    "olmo2": {**_LLAMA, "num_key_value_heads": None, "rms_norm_eps": 1e-5},
    "cohere": {
        "num_attention_heads": 64,
        "num_key_value_heads": None,
        "hidden_act": "silu",
        "layer_norm_eps": 1e-5,
        "logit_scale": 0.0625,
        "attention_bias": False,
        "rope_theta": 500_000.0,
    },
    "starcoder2": {
        "num_attention_heads": 24,
        "num_key_value_heads": 2,
        "hidden_act": "gelu_pytorch_tanh",
        "sliding_window": None,
        "use_bias": True,
        "rope_theta": 10_000.0,
    },
    "deepseek_v3": {
        **_LLAMA,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "num_experts_per_tok": 8,
        "routed_scaling_factor": 2.5,
    },
    "smollm3": {
        **_LLAMA,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "sliding_window": None,
        "rope_theta": 2_000_000.0,
    },
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "distilbert": {"activation": "gelu"},
    "modernbert": {"num_attention_heads": 12, "hidden_activation": "gelu", "attention_bias": False},
    "t5": {"num_heads": 8, "feed_forward_proj": "relu", "layer_norm_epsilon": 1e-6},
    "gpt2": {"n_head": 12, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5},
    "opt": {"num_attention_heads": 12, "activation_function": "relu"},
    "whisper": {
        "encoder_attention_heads": 6,
        "decoder_attention_heads": 6,
        "activation_function": "gelu",
    },
    "vit": _VIT,
    "dinov2": {**_VIT, "layer_norm_eps": 1e-6, "patch_size": 14},
    "siglip_vision_model": {
        **_VIT,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    },
    "siglip_text_model": {
        "num_attention_heads": 12,
        "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6,
    },
    "clip_vision_model": {
        **_CLIP,
        "num_attention_heads": 12,
        "patch_size": 32,
        "image_size": 224,
    },
    "clip_text_model": {**_CLIP, "num_attention_heads": 8},
}

_UNKNOWN = object()


def families() -> Mapping[str, Mapping[str, Any]]:
    """Every family of the table with the defaults of its keys; None where a default follows from other keys."""
    return {
        name: {**{k: v for k, v in _EVERYWHERE.items() if k in known}, **known}
        for name, known in _OF_FAMILY.items()
    }


def default_of(key: str, family: str | None) -> tuple[bool, Any]:
    """(whether it is known, the value) of a key that a configuration of this `model_type` leaves out."""
    own = _OF_FAMILY.get(family or "", {}).get(key, _UNKNOWN)
    value = _EVERYWHERE.get(key, _UNKNOWN) if own is _UNKNOWN else own
    return (False, None) if value is _UNKNOWN else (True, value)
