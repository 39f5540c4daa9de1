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
SMALL = {key: size for size, keys in _SIZES.items() for key in keys.split()}
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
        own = getattr(usual, key, None)
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if isinstance(own, transformers.PreTrainedConfig):
            keys[key] = tiny_config(type(own))
        elif key in SMALL and is_number:
            keys[key] = SMALL[key]
        elif key.endswith(("_token_id", "_token_index")) and (is_number or isinstance(value, list)):
            keys[key] = 1
    try:
        return kind(**keys)
    except Exception:
        # Families whose heads are all keys and values.
        if "num_key_value_heads" not in keys:
            raise
        return kind(**keys | {"num_key_value_heads": 4})
