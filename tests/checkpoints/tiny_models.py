"""The smallest model with random weights of every class of transformers that can be made small by its usual keys."""

from __future__ import annotations

from typing import Any

import transformers
from transformers.models.auto import modeling_auto

LAYERS = 6
_SIZES = {
    96: "vocab_size text_vocab_size vocab_size_per_layer_input",
    32: "hidden_size d_model n_embd embed_dim dim text_hidden_size embedding_size word_embed_proj_dim lru_width "
    "projection_dim",
    4: "num_attention_heads n_head num_heads n_heads encoder_attention_heads decoder_attention_heads attention_heads "
    "num_experts num_local_experts n_routed_experts moe_num_experts qk_rope_head_dim mamba_n_heads mamba_num_heads "
    "mamba_dt_rank time_step_rank",
    2: "num_key_value_heads num_kv_heads n_head_kv num_experts_per_tok moe_topk top_k_experts moe_k index_n_heads "
    "linear_num_key_heads linear_num_value_heads type_vocab_size",
    1: "n_shared_experts num_shared_experts moe_num_shared_experts n_group topk_group",
    48: "intermediate_size d_ff n_inner ffn_dim encoder_ffn_dim decoder_ffn_dim ffn_hidden_size moe_intermediate_size "
    "shared_expert_intermediate_size mlp_dim intermediate_size_mlp dense_intermediate_size feedforward_dim",
    8: "head_dim d_kv q_lora_rank kv_lora_rank qk_nope_head_dim v_head_dim qk_head_dim patch_size mamba_d_state "
    "ssm_state_size state_size linear_key_head_dim linear_value_head_dim hidden_size_per_layer_input index_head_dim "
    "relative_attention_num_buckets sliding_window num_buckets mamba_chunk_size chunk_size",
    16: "image_size mamba_d_head mamba_head_dim num_mel_bins",
    64: "max_position_embeddings n_positions n_ctx max_seq_len max_source_positions max_target_positions seq_length",
    LAYERS: "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers "
    "num_encoder_layers depth num_blocks",
}
_LAYERS = _SIZES[LAYERS].split()
SMALL = {key: size for size, keys in _SIZES.items() for key in keys.split()}
# What the usual keys leave in contradiction, by `model_type` of the section.
_OF_FAMILY: dict[str, dict[str, Any]] = {
    "falcon_h1": {"mamba_d_ssm": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * (LAYERS // 2)},
    "zamba": {"layers_block_type": ["mamba", "hybrid"] * (LAYERS // 2)},
    "zamba2": {
        "layer_types": ["mamba", "hybrid"] * (LAYERS // 2),
        "hybrid_layer_ids": list(range(1, LAYERS, 2)),
    },
    "zaya": {"num_experts_per_tok": 1},
    "nemotron": {"head_dim": 8, "num_key_value_heads": 2},
    "ministral": {"head_dim": 8},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "lsh"] * (LAYERS // 2),
        "attention_head_size": 8,
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [16, 16],
    },
    "glm5_next_text": {"qk_rope_head_dim": 0},
    "longcat_flash": {"expert_ffn_hidden_size": 48, "zero_expert_num": 1},
    "informer": {"prediction_length": 4},
    "time_series_transformer": {"prediction_length": 4},
}
# The class with the most heads that a family has, first.
_CLASSES = (
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    modeling_auto.MODEL_MAPPING_NAMES,
)


def families() -> list[str]:
    """Every `model_type` of transformers that has a network."""
    known = set().union(*_CLASSES)
    return sorted(name for name in transformers.CONFIG_MAPPING if name in known)


def network_class(family: str) -> Any:
    """The class of a family's network."""
    name = next(names[family] for names in _CLASSES if family in names)
    return getattr(transformers, name if isinstance(name, str) else name[0])


def tiny_config(kind: Any) -> Any:
    """The configuration of a class with small sizes, nested ones too."""
    usual = kind()
    given = usual.to_dict()
    keys: dict[str, Any] = {}
    for key, value in given.items():
        # Some raise for a number that layers may have in different ways.
        own = getattr(usual, key, None) if isinstance(value, dict) else None
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if isinstance(own, transformers.PreTrainedConfig):
            keys[key] = tiny_config(type(own))
        elif key in SMALL and is_number:
            keys[key] = SMALL[key]
        elif key.endswith(("_token_id", "_token_index")) and (is_number or isinstance(value, list)):
            keys[key] = 1
    layers = next((given[key] for key in _LAYERS if isinstance(given.get(key), int)), None)
    for key, value in given.items():
        if isinstance(value, list) and len(value) == layers and layers > LAYERS:
            keys.setdefault(key, value[:LAYERS])
    keys |= _OF_FAMILY.get(kind.model_type, {})
    try:
        return kind(**keys)
    except Exception:
        # Families whose heads are all keys and values.
        if "num_key_value_heads" not in keys:
            raise
        return kind(**keys | {"num_key_value_heads": 4})
